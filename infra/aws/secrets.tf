# Made in AWS's random generator and written by a write-only argument: it is neither in the plan nor in the state. A higher version makes
# a new one.

ephemeral "aws_secretsmanager_random_password" "admin_key" {
  password_length     = 48
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

# Empty: the first control plane that starts fills it, and `multinode server rotate-key` changes it. Terraform may not have a hand in it:
# a version that it missed, since rotations have replaced it, it would write anew, over the keys that are in use.
resource "aws_secretsmanager_secret" "key_ring" {
  name_prefix = "${var.name}/key-ring-"
  description = "Keys that encrypt the values of .env in ${var.name}: without them these are lost"
}
