output "url" {
  description = "Where the control plane is."
  value       = local.url
}

output "login" {
  description = "How the first of you logs in, and then gives each of you a key of their own."
  value       = <<-EOT
    aws secretsmanager get-secret-value --region ${local.region} --secret-id ${aws_secretsmanager_secret.admin_key.name} --query SecretString --output text
    multinode login ${local.url}
    multinode key create ada --role deploy
  EOT
}

output "load_balancer_name" {
  description = "DNS name of the load balancer for clients: the target of a CNAME record of the domain name, where no route53_zone_id was given."
  value       = aws_lb.this["clients"].dns_name
}

output "admin_key_secret_arn" {
  description = "Secret with the first key, of the role admin."
  value       = aws_secretsmanager_secret.admin_key.arn
}

output "key_ring_secret_arn" {
  description = "Secret with the keys of .env values. Whoever restores the database elsewhere needs it."
  value       = aws_secretsmanager_secret.key_ring.arn
}

output "alarm_topic_arn" {
  description = "SNS topic of the alarms."
  value       = aws_sns_topic.alarms.arn
}

output "function_role_name" {
  description = "IAM role of functions, to which policies may be attached."
  value       = aws_iam_role.functions.name
}

output "function_security_group_id" {
  description = "Security group of functions: let it into what they use."
  value       = aws_security_group.functions.id
}

output "cluster_name" {
  description = "ECS cluster in which control planes and functions run."
  value       = aws_ecs_cluster.this.name
}

output "repository_url" {
  description = "ECR repository of the images of functions."
  value       = aws_ecr_repository.functions.repository_url
}

output "log_group_names" {
  description = "CloudWatch log groups of control planes and functions."
  value = {
    control_plane = aws_cloudwatch_log_group.control_plane.name
    functions     = aws_cloudwatch_log_group.functions.name
  }
}

output "vpc_id" {
  description = "The VPC, new or yours."
  value       = local.vpc_id
}

output "private_subnet_ids" {
  description = "Subnets of control planes and functions."
  value       = local.private_subnet_ids
}
