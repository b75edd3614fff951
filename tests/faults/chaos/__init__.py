"""`python -m tests.faults.chaos`: breaks each process and server of an installation under load.

`system.py` is the installation, `load.py` who calls it, `cells.py` what is broken and how,
`__main__.py` runs the cells and writes CHAOS.md.
"""
