# Who may reach whom. Every rule is one line of the README's table, and nothing else is let through.

locals {
  port          = 9470
  database_port = 5432
}

resource "aws_security_group" "clients" {
  name        = "${var.name}-clients"
  description = "Load balancer of ${var.name} for people and applications"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-clients" }
}

resource "aws_security_group" "workers" {
  name        = "${var.name}-workers"
  description = "Internal load balancer of ${var.name}, for functions that run and for clients in the VPC"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-workers" }
}

resource "aws_security_group" "control_plane" {
  name        = "${var.name}-control-plane"
  description = "Control planes of ${var.name}"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-control-plane" }
}

resource "aws_security_group" "functions" {
  name        = "${var.name}-functions"
  description = "Functions that ${var.name} runs"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-functions" }
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "Database of ${var.name}"
  vpc_id      = local.vpc_id
  tags        = { Name = "${var.name}-database" }
}

# --- clients to their load balancer ----------------------------------------------------------------------------

resource "aws_vpc_security_group_ingress_rule" "clients_https" {
  count = length(var.client_cidr_blocks)

  security_group_id = aws_security_group.clients.id
  description       = "HTTPS from clients"
  cidr_ipv4         = var.client_cidr_blocks[count.index]
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "clients_to_control_plane" {
  security_group_id            = aws_security_group.clients.id
  description                  = "To the control planes"
  referenced_security_group_id = aws_security_group.control_plane.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

# --- functions, and clients in the VPC, to the internal load balancer ------------------------------------------

resource "aws_vpc_security_group_ingress_rule" "workers_from_functions" {
  security_group_id            = aws_security_group.workers.id
  description                  = "HTTPS from functions"
  referenced_security_group_id = aws_security_group.functions.id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_ingress_rule" "workers_from_clients" {
  count = length(var.client_security_group_ids)

  security_group_id            = aws_security_group.workers.id
  description                  = "HTTPS from clients in the VPC"
  referenced_security_group_id = var.client_security_group_ids[count.index]
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_egress_rule" "workers_to_control_plane" {
  security_group_id            = aws_security_group.workers.id
  description                  = "To the control planes"
  referenced_security_group_id = aws_security_group.control_plane.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

# --- control planes --------------------------------------------------------------------------------------------

resource "aws_vpc_security_group_ingress_rule" "control_plane" {
  for_each = {
    clients = aws_security_group.clients.id
    workers = aws_security_group.workers.id
    peers   = aws_security_group.control_plane.id
  }

  security_group_id            = aws_security_group.control_plane.id
  description                  = each.key == "peers" ? "From each other" : "From the load balancer for ${each.key}"
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_egress_rule" "control_plane_to_peers" {
  security_group_id            = aws_security_group.control_plane.id
  description                  = "To each other"
  referenced_security_group_id = aws_security_group.control_plane.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
}

resource "aws_vpc_security_group_egress_rule" "control_plane_to_database" {
  security_group_id            = aws_security_group.control_plane.id
  description                  = "To the database"
  referenced_security_group_id = aws_security_group.database.id
  ip_protocol                  = "tcp"
  from_port                    = local.database_port
  to_port                      = local.database_port
}

resource "aws_vpc_security_group_egress_rule" "control_plane_to_aws" {
  security_group_id = aws_security_group.control_plane.id
  description       = "To the APIs of AWS, whose addresses change"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# --- database: nothing but the control planes, and no way out --------------------------------------------------

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  description                  = "From the control planes"
  referenced_security_group_id = aws_security_group.control_plane.id
  ip_protocol                  = "tcp"
  from_port                    = local.database_port
  to_port                      = local.database_port
}

# --- functions: nobody reaches them ----------------------------------------------------------------------------

resource "aws_vpc_security_group_egress_rule" "functions_to_control_plane" {
  security_group_id            = aws_security_group.functions.id
  description                  = "To the internal load balancer"
  referenced_security_group_id = aws_security_group.workers.id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_egress_rule" "functions" {
  count = length(var.function_egress_cidr_blocks)

  security_group_id = aws_security_group.functions.id
  description       = "Where their code may go"
  cidr_ipv4         = var.function_egress_cidr_blocks[count.index]
  ip_protocol       = "-1"
}
