# What somebody should look at, sent to one topic.

locals {
  alarms = {
    unhealthy = {
      description = "A control plane is not ready to serve"
      namespace   = "AWS/ApplicationELB"
      metric      = "UnHealthyHostCount"
      statistic   = "Minimum"
      over        = 0
      minutes     = 5
      dimensions  = { LoadBalancer = aws_lb.this["clients"].arn_suffix, TargetGroup = aws_lb_target_group.this["clients"].arn_suffix }
    }
    nobody-serves = {
      description = "No control plane serves"
      namespace   = "AWS/ApplicationELB"
      metric      = "HealthyHostCount"
      statistic   = "Maximum"
      under       = 1
      minutes     = 2
      missing     = "breaching"
      dimensions  = { LoadBalancer = aws_lb.this["clients"].arn_suffix, TargetGroup = aws_lb_target_group.this["clients"].arn_suffix }
    }
    errors-to-clients = {
      description = "Control planes answer clients with errors of their own (5xx)"
      namespace   = "AWS/ApplicationELB"
      metric      = "HTTPCode_Target_5XX_Count"
      statistic   = "Sum"
      over        = 20
      minutes     = 5
      dimensions  = { LoadBalancer = aws_lb.this["clients"].arn_suffix }
    }
    errors-to-functions = {
      description = "Control planes answer functions that run with errors of their own (5xx)"
      namespace   = "AWS/ApplicationELB"
      metric      = "HTTPCode_Target_5XX_Count"
      statistic   = "Sum"
      over        = 20
      minutes     = 5
      dimensions  = { LoadBalancer = aws_lb.this["workers"].arn_suffix }
    }
    control-plane-cpu = {
      description = "Control planes are busy: give them a larger control_plane_size"
      namespace   = "AWS/ECS"
      metric      = "CPUUtilization"
      statistic   = "Average"
      over        = 85
      minutes     = 15
      dimensions  = { ClusterName = aws_ecs_cluster.this.name, ServiceName = aws_ecs_service.control_plane.name }
    }
    control-plane-memory = {
      description = "Control planes are short of memory: give them a larger control_plane_size"
      namespace   = "AWS/ECS"
      metric      = "MemoryUtilization"
      statistic   = "Maximum"
      over        = 85
      minutes     = 15
      dimensions  = { ClusterName = aws_ecs_cluster.this.name, ServiceName = aws_ecs_service.control_plane.name }
    }
    database-cpu = {
      description = "The database is busy: give it a larger instance_class"
      namespace   = "AWS/RDS"
      metric      = "CPUUtilization"
      statistic   = "Average"
      over        = 85
      minutes     = 15
      dimensions  = { DBInstanceIdentifier = aws_db_instance.this.identifier }
    }
    database-storage = {
      description = "The database has less than 4 GiB left, and has not grown by itself: look at max_storage"
      namespace   = "AWS/RDS"
      metric      = "FreeStorageSpace"
      statistic   = "Minimum"
      under       = 4 * 1024 * 1024 * 1024
      minutes     = 15
      dimensions  = { DBInstanceIdentifier = aws_db_instance.this.identifier }
    }
    database-memory = {
      description = "The database has less than 100 MiB of memory left: give it a larger instance_class"
      namespace   = "AWS/RDS"
      metric      = "FreeableMemory"
      statistic   = "Average"
      under       = 100 * 1024 * 1024
      minutes     = 15
      dimensions  = { DBInstanceIdentifier = aws_db_instance.this.identifier }
    }
  }
}

resource "aws_sns_topic" "alarms" {
  name = "${var.name}-alarms"
}

resource "aws_sns_topic_policy" "alarms" {
  arn = aws_sns_topic.alarms.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "Alarms"
        Effect    = "Allow"
        Principal = { Service = "cloudwatch.amazonaws.com" }
        Action    = "sns:Publish"
        Resource  = aws_sns_topic.alarms.arn
        Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
      },
      {
        Sid       = "Deployments"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sns:Publish"
        Resource  = aws_sns_topic.alarms.arn
        Condition = { ArnEquals = { "aws:SourceArn" = aws_cloudwatch_event_rule.deployment_failed.arn } }
      },
    ]
  })
}

resource "aws_sns_topic_subscription" "alarms" {
  count = length(var.alarm_emails)

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.alarm_emails[count.index]
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = can(each.value.over) ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = try(each.value.over, each.value.under)
  period              = 60
  evaluation_periods  = each.value.minutes
  treat_missing_data  = try(each.value.missing, "notBreaching")
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}

resource "aws_cloudwatch_event_rule" "deployment_failed" {
  name        = "${var.name}-deployment-failed"
  description = "A deployment of the control plane of ${var.name} was taken back"
  event_pattern = jsonencode({
    source      = ["aws.ecs"]
    detail-type = ["ECS Deployment State Change"]
    resources   = ["${local.ecs_arn}:service/${var.name}/${var.name}-control-plane"]
    detail      = { eventName = ["SERVICE_DEPLOYMENT_FAILED"] }
  })
}

resource "aws_cloudwatch_event_target" "deployment_failed" {
  rule = aws_cloudwatch_event_rule.deployment_failed.name
  arn  = aws_sns_topic.alarms.arn
}
