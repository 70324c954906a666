# Where functions run: the cluster, the repository of their images, and their output.

locals {
  # Task definitions of functions begin with this (`family_prefix` in runners/ecs_tasks.py); that of the control plane itself does not.
  function_family_prefix = "multinode-${var.name}-worker-"
}

resource "aws_ecs_cluster" "this" {
  name = var.name

  setting {
    name = "containerInsights"
    # Charged for each task definition, of which functions have many.
    value = "disabled"
  }
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  cluster_name       = aws_ecs_cluster.this.name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]

  default_capacity_provider_strategy {
    capacity_provider = "FARGATE"
    weight            = 1
  }
}

# One for all projects, so that a layer is stored and uploaded once. The control plane removes images that no version uses.
resource "aws_ecr_repository" "functions" {
  name                 = "${var.name}/functions"
  image_tag_mutability = "IMMUTABLE"
  force_delete         = !var.deletion_protection

  encryption_configuration {
    encryption_type = "AES256"
  }

  image_scanning_configuration {
    scan_on_push = true
  }
}

# Untagged ones only, which pushes that broke off have left: the oldest tagged image may be that of a version in use.
resource "aws_ecr_lifecycle_policy" "functions" {
  repository = aws_ecr_repository.functions.name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "What pushes that broke off have left"
      selection = {
        tagStatus   = "untagged"
        countType   = "sinceImagePushed"
        countUnit   = "days"
        countNumber = 14
      }
      action = { type = "expire" }
    }]
  })
}

resource "aws_cloudwatch_log_group" "functions" {
  name              = "/${var.name}/functions"
  retention_in_days = var.log_retention_days
}

resource "aws_cloudwatch_log_group" "control_plane" {
  name              = "/${var.name}/control-plane"
  retention_in_days = var.log_retention_days
}
