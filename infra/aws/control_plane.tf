# The service: some control planes, of which one leads. A new task first brings the database's schema forward, then serves; an old
# one goes only when the new ones are healthy.

locals {
  home = "/var/lib/multinode"

  environment = merge(var.settings, {
    MULTINODE_RUNNER          = "ecs"
    MULTINODE_DATABASE        = local.database_url
    MULTINODE_HOME            = local.home
    MULTINODE_HOST            = "0.0.0.0"
    MULTINODE_PORT            = tostring(local.port)
    MULTINODE_WORKER_URL      = local.url
    MULTINODE_ALLOWED_HOSTS   = var.domain_name
    MULTINODE_TRUSTED_PROXIES = join(",", local.load_balancer_cidr_blocks)
    MULTINODE_SECRET_KEY_FROM = "aws:${aws_secretsmanager_secret.key_ring.arn}"
    MULTINODE_REGISTRY        = "ecr:${aws_ecr_repository.functions.name}"
    MULTINODE_LOG_FORMAT      = "json"
    MULTINODE_STOP_DELAY      = "10"
    # Of the task's own 20 GiB.
    MULTINODE_DISK_LIMIT = "8GiB"

    MULTINODE_ECS_NAME            = var.name
    MULTINODE_ECS_CLUSTER         = aws_ecs_cluster.this.name
    MULTINODE_ECS_ARCHITECTURE    = var.function_cpu_architecture
    MULTINODE_ECS_SPOT            = var.function_spot ? "1" : "0"
    MULTINODE_ECS_SUBNETS         = join(",", local.private_subnet_ids)
    MULTINODE_ECS_SECURITY_GROUPS = join(",", concat([aws_security_group.functions.id], var.function_security_group_ids))
    MULTINODE_ECS_EXECUTION_ROLE  = aws_iam_role.functions_execution.arn
    MULTINODE_ECS_TASK_ROLE       = aws_iam_role.functions.arn
    MULTINODE_ECS_LOG_GROUP       = aws_cloudwatch_log_group.functions.name

    AWS_REGION         = local.region
    AWS_DEFAULT_REGION = local.region
    # Its file system cannot be written to elsewhere.
    TMPDIR = local.home
  })

  container = {
    image                  = var.image
    readonlyRootFilesystem = true
    environment            = [for name in sort(keys(local.environment)) : { name = name, value = local.environment[name] }]
    mountPoints            = [{ sourceVolume = "home", containerPath = local.home, readOnly = false }]
    linuxParameters        = { initProcessEnabled = true, capabilities = { drop = ["ALL"], add = [] } }
    portMappings           = []
    volumesFrom            = []
    systemControls         = []
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-region        = local.region
        awslogs-group         = aws_cloudwatch_log_group.control_plane.name
        awslogs-stream-prefix = "control-plane"
      }
    }
  }
}

resource "aws_ecs_task_definition" "control_plane" {
  family                   = "${var.name}-control-plane"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.control_plane_size.cpu
  memory                   = var.control_plane_size.memory
  task_role_arn            = aws_iam_role.control_plane.arn
  execution_role_arn       = aws_iam_role.control_plane_execution.arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.cpu_architecture
  }

  # The image's own VOLUME gives its user the folder.
  volume {
    name = "home"
  }

  container_definitions = jsonencode([
    merge(local.container, {
      name       = "migrate"
      essential  = false
      entryPoint = ["multinode", "server", "migrate"]
    }),
    merge(local.container, {
      name         = "control-plane"
      essential    = true
      dependsOn    = [{ containerName = "migrate", condition = "SUCCESS" }]
      portMappings = [{ containerPort = local.port, hostPort = local.port, protocol = "tcp" }]
      stopTimeout  = 60
      secrets      = [{ name = "MULTINODE_ADMIN_KEY", valueFrom = aws_secretsmanager_secret.admin_key.arn }]
      # Whether it lives; whether it can serve is what the load balancers ask.
      healthCheck = {
        command     = ["CMD", "python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:${local.port}/healthz', timeout=4)"]
        interval    = 30
        timeout     = 5
        retries     = 3
        startPeriod = 60
      }
    }),
  ])
}

resource "aws_ecs_service" "control_plane" {
  name            = "${var.name}-control-plane"
  cluster         = aws_ecs_cluster.this.id
  task_definition = aws_ecs_task_definition.control_plane.arn
  desired_count   = var.control_plane_count

  launch_type                       = "FARGATE"
  platform_version                  = "LATEST"
  enable_execute_command            = false
  propagate_tags                    = "SERVICE"
  enable_ecs_managed_tags           = true
  availability_zone_rebalancing     = "ENABLED"
  health_check_grace_period_seconds = 120

  # Never fewer than are wanted; a deployment whose tasks do not come up is taken back.
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }
  wait_for_steady_state = true

  network_configuration {
    subnets          = local.private_subnet_ids
    security_groups  = [aws_security_group.control_plane.id]
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = aws_lb_target_group.this
    content {
      target_group_arn = load_balancer.value.arn
      container_name   = "control-plane"
      container_port   = local.port
    }
  }

  # Its start needs all of these, which nothing above names.
  depends_on = [
    aws_ecs_cluster_capacity_providers.this,
    aws_iam_role_policy.control_plane,
    aws_iam_role_policy.control_plane_execution,
    aws_lb_listener.https,
    aws_route.private,
    aws_secretsmanager_secret_version.admin_key,
    aws_vpc_security_group_egress_rule.control_plane_to_aws,
    aws_vpc_security_group_egress_rule.control_plane_to_database,
    aws_vpc_security_group_ingress_rule.control_plane,
    aws_vpc_security_group_ingress_rule.database,
  ]
}
