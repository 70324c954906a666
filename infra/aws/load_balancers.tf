# Two ways to the same control planes, with the same name and certificate: one for clients, and an internal one for the
# functions that run, to which the name leads inside the VPC.

locals {
  certificate_arn = var.certificate_arn != null ? var.certificate_arn : aws_acm_certificate_validation.this[0].certificate_arn
  url             = "https://${var.domain_name}"

  load_balancers = {
    clients = { internal = var.internal, security_group_id = aws_security_group.clients.id }
    workers = { internal = true, security_group_id = aws_security_group.workers.id }
  }

  # Longer than the 60 s that a client may wait for an answer, and shorter than the 75 s after which a control plane closes a connection
  # that is idle: one that is closed just as it is used would be a 502.
  idle_timeout_s = 70
}

resource "aws_lb" "this" {
  for_each = local.load_balancers

  name                       = "${var.name}-${each.key}"
  load_balancer_type         = "application"
  internal                   = each.value.internal
  subnets                    = each.value.internal ? local.private_subnet_ids : local.public_subnet_ids
  security_groups            = [each.value.security_group_id]
  idle_timeout               = local.idle_timeout_s
  drop_invalid_header_fields = true
  enable_deletion_protection = var.deletion_protection

  dynamic "access_logs" {
    for_each = var.access_logs_bucket == null ? [] : [var.access_logs_bucket]
    content {
      bucket  = access_logs.value
      prefix  = "${var.name}-${each.key}"
      enabled = true
    }
  }
}

resource "aws_lb_target_group" "this" {
  for_each = local.load_balancers

  name        = "${var.name}-${each.key}"
  vpc_id      = local.vpc_id
  target_type = "ip"
  port        = local.port
  protocol    = "HTTP"

  # ECS waits for this long before it tells a task to stop: requests that wait for something are answered within 25 s.
  deregistration_delay = 30

  health_check {
    path                = "/readyz"
    matcher             = "200"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 6
  }
}

resource "aws_lb_listener" "https" {
  for_each = local.load_balancers

  load_balancer_arn = aws_lb.this[each.key].arn
  port              = 443
  protocol          = "HTTPS"
  ssl_policy        = "ELBSecurityPolicy-TLS13-1-2-2021-06"
  certificate_arn   = local.certificate_arn

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this[each.key].arn
  }
}

# --- certificate -----------------------------------------------------------------------------------------------

resource "aws_acm_certificate" "this" {
  count = var.certificate_arn == null ? 1 : 0

  domain_name       = var.domain_name
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_route53_record" "validation" {
  count = var.certificate_arn == null ? 1 : 0

  zone_id         = var.route53_zone_id
  name            = one(aws_acm_certificate.this[0].domain_validation_options).resource_record_name
  type            = one(aws_acm_certificate.this[0].domain_validation_options).resource_record_type
  records         = [one(aws_acm_certificate.this[0].domain_validation_options).resource_record_value]
  ttl             = 300
  allow_overwrite = true
}

resource "aws_acm_certificate_validation" "this" {
  count = var.certificate_arn == null ? 1 : 0

  certificate_arn         = aws_acm_certificate.this[0].arn
  validation_record_fqdns = [aws_route53_record.validation[0].fqdn]
}

# --- the name --------------------------------------------------------------------------------------------------

resource "aws_route53_record" "clients" {
  count = var.route53_zone_id == null ? 0 : 1

  zone_id = var.route53_zone_id
  name    = var.domain_name
  type    = "A"

  alias {
    name                   = aws_lb.this["clients"].dns_name
    zone_id                = aws_lb.this["clients"].zone_id
    evaluate_target_health = true
  }
}

# Of this one name only: other names in its domain are answered as before.
resource "aws_route53_zone" "workers" {
  name    = var.domain_name
  comment = "Leads the functions of ${var.name} to its internal load balancer"

  vpc {
    vpc_id = local.vpc_id
  }
}

resource "aws_route53_record" "workers" {
  zone_id = aws_route53_zone.workers.zone_id
  name    = var.domain_name
  type    = "A"

  alias {
    name                   = aws_lb.this["workers"].dns_name
    zone_id                = aws_lb.this["workers"].zone_id
    evaluate_target_health = true
  }
}
