# Made in AWS's random generator and written by write-only arguments: neither is in the plan or in the state. A higher version makes a new one.

ephemeral "aws_secretsmanager_random_password" "admin_key" {
  password_length     = 48
  exclude_punctuation = true
}

ephemeral "aws_secretsmanager_random_password" "key_ring" {
  password_length     = 64
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret" "admin_key" {
  name_prefix = "${var.name}/admin-key-"
  description = "First key of ${var.name}, of the role admin"
}

resource "aws_secretsmanager_secret_version" "admin_key" {
  secret_id                = aws_secretsmanager_secret.admin_key.id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.admin_key.random_password
  secret_string_wo_version = 1
}

resource "aws_secretsmanager_secret" "key_ring" {
  name_prefix = "${var.name}/key-ring-"
  description = "Keys that encrypt the values of .env in ${var.name}: without them these are lost"
}

# The first key only: `multinode server rotate-key` writes others, which Terraform never sees.
resource "aws_secretsmanager_secret_version" "key_ring" {
  secret_id                = aws_secretsmanager_secret.key_ring.id
  secret_string_wo         = base64sha256(ephemeral.aws_secretsmanager_random_password.key_ring.random_password)
  secret_string_wo_version = 1

  # A rotation moves the label AWSCURRENT to a version that is not ours.
  lifecycle {
    ignore_changes = [version_stages]
  }
}
