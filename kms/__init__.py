"""Who signs: key records, their life, and the backends that hold them."""
