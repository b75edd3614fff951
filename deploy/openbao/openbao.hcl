# OpenBao with the Transit engine. At its first start it initialises itself: there is no root token
# and nothing to copy. It unseals itself with a key in a file, so whoever has that file and the
# volume has the signing keys: in production, seal it with a key service or by hand (docs/install.md).
api_addr     = "https://openbao:8200"
cluster_addr = "https://127.0.0.1:8201"

storage "raft" {
  path    = "/openbao/file"
  node_id = "one"
}

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/run/secrets/inside.pem"
  tls_key_file  = "/run/secrets/inside.key"
}

seal "static" {
  current_key_id = "1"
  current_key    = "file:///run/secrets/openbao_unseal_key"
}

initialize "registry" {
  request "transit" {
    operation = "update"
    path      = "sys/mounts/transit"
    data      = { type = "transit" }
  }
  request "policy" {
    operation = "update"
    path      = "sys/policies/acl/agentauth"
    data = {
      policy = <<EOT
path "transit/keys/+" { capabilities = ["update", "read"] }
path "transit/sign/agentauth-*" { capabilities = ["update"] }
EOT
    }
  }
  request "approle" {
    operation = "update"
    path      = "sys/auth/approle"
    data      = { type = "approle" }
  }
  request "role" {
    operation = "update"
    path      = "auth/approle/role/agentauth"
    data = {
      token_policies          = "agentauth"
      token_no_default_policy = true
      token_ttl               = "1h"
      token_max_ttl           = "1h"
    }
  }
  request "role-id" {
    operation = "update"
    path      = "auth/approle/role/agentauth/role-id"
    data      = { role_id = "agentauth" }
  }
  request "secret-id" {
    operation = "update"
    path      = "auth/approle/role/agentauth/custom-secret-id"
    data = {
      secret_id = {
        eval_type   = "string"
        eval_source = "file"
        path        = "/run/secrets/openbao_secret_id"
      }
    }
  }
}
