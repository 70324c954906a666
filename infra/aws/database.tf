locals {
  database_url = join("", [
    "postgresql://${aws_db_instance.this.username}@${aws_db_instance.this.address}:${local.database_port}/${aws_db_instance.this.db_name}",
    var.database.ca_file == null ? "?sslmode=require" : "?sslmode=verify-full&sslrootcert=${var.database.ca_file}",
    # RDS changes the password every week: it is read anew for each connection.
    "&password_from=aws:${local.database_secret_arn}",
  ])
  database_secret_arn = aws_db_instance.this.master_user_secret[0].secret_arn
  database_major      = split(".", var.database.engine_version)[0]
}

resource "aws_db_subnet_group" "this" {
  name        = var.name
  description = "Where the database of ${var.name} lies"
  subnet_ids  = local.database_subnet_ids
}

resource "aws_db_parameter_group" "this" {
  name        = "${var.name}-postgres${local.database_major}"
  family      = "postgres${local.database_major}"
  description = "PostgreSQL of ${var.name}"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  lifecycle {
    create_before_destroy = true
  }
}

# Made before the database would make it, for it would keep logs for ever.
resource "aws_cloudwatch_log_group" "database" {
  name              = "/aws/rds/instance/${var.name}/postgresql"
  retention_in_days = var.log_retention_days
}

resource "aws_db_instance" "this" {
  identifier = var.name

  engine                     = "postgres"
  engine_version             = var.database.engine_version
  auto_minor_version_upgrade = true
  parameter_group_name       = aws_db_parameter_group.this.name
  instance_class             = var.database.instance_class
  multi_az                   = var.database.multi_az

  storage_type          = "gp3"
  storage_encrypted     = true
  allocated_storage     = var.database.storage
  max_allocated_storage = var.database.max_storage

  db_name                     = "multinode"
  username                    = "multinode"
  manage_master_user_password = true
  port                        = local.database_port

  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.database.id]
  publicly_accessible    = false

  backup_retention_period         = var.database.backup_retention_days
  copy_tags_to_snapshot           = true
  deletion_protection             = var.deletion_protection
  skip_final_snapshot             = false
  final_snapshot_identifier       = "${var.name}-final"
  enabled_cloudwatch_logs_exports = ["postgresql"]

  depends_on = [aws_cloudwatch_log_group.database]
}
