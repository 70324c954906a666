# Four roles: what the control plane's code may do, what ECS may do to start it, and the same two for functions.

locals {
  assume_by_tasks = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = local.account }
        ArnLike      = { "aws:SourceArn" = "arn:${local.partition}:ecs:${local.region}:${local.account}:*" }
      }
    }]
  })

  ecs_arn = "arn:${local.partition}:ecs:${local.region}:${local.account}"

  in_our_cluster = { ArnEquals = { "ecs:cluster" = aws_ecs_cluster.this.arn } }

  pull_functions = [
    {
      Sid      = "LogInToEcr"
      Effect   = "Allow"
      Action   = "ecr:GetAuthorizationToken"
      Resource = "*"
    },
    {
      Sid      = "PullImagesOfFunctions"
      Effect   = "Allow"
      Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
      Resource = aws_ecr_repository.functions.arn
    },
  ]
}

# --- the control plane's code ----------------------------------------------------------------------------------

resource "aws_iam_role" "control_plane" {
  name               = "${var.name}-control-plane"
  description        = "What the control plane of ${var.name} may do"
  assume_role_policy = local.assume_by_tasks
}

resource "aws_iam_role_policy" "control_plane" {
  name = "control-plane"
  role = aws_iam_role.control_plane.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(local.pull_functions, [
      # IAM cannot limit these to some task definitions.
      {
        Sid    = "DefineHowFunctionsRun"
        Effect = "Allow"
        Action = [
          "ecs:DeregisterTaskDefinition",
          "ecs:DescribeTaskDefinition",
          "ecs:ListTaskDefinitionFamilies",
          "ecs:ListTaskDefinitions",
          "ecs:RegisterTaskDefinition",
        ]
        Resource = "*"
      },
      {
        Sid      = "LookAtTheCluster"
        Effect   = "Allow"
        Action   = "ecs:DescribeClusters"
        Resource = aws_ecs_cluster.this.arn
      },
      {
        Sid       = "RunFunctions"
        Effect    = "Allow"
        Action    = "ecs:RunTask"
        Resource  = "${local.ecs_arn}:task-definition/${local.function_family_prefix}*:*"
        Condition = local.in_our_cluster
      },
      {
        Sid       = "FollowAndStopFunctions"
        Effect    = "Allow"
        Action    = ["ecs:DescribeTasks", "ecs:StopTask"]
        Resource  = "${local.ecs_arn}:task/${aws_ecs_cluster.this.name}/*"
        Condition = local.in_our_cluster
      },
      {
        Sid       = "ListFunctions"
        Effect    = "Allow"
        Action    = "ecs:ListTasks"
        Resource  = "*"
        Condition = local.in_our_cluster
      },
      {
        Sid    = "TagWhatItMakes"
        Effect = "Allow"
        Action = "ecs:TagResource"
        Resource = [
          "${local.ecs_arn}:task/${aws_ecs_cluster.this.name}/*",
          "${local.ecs_arn}:task-definition/${local.function_family_prefix}*:*",
        ]
        Condition = { StringEquals = { "ecs:CreateAction" = ["RunTask", "RegisterTaskDefinition"] } }
      },
      {
        Sid       = "GiveFunctionsTheirRoles"
        Effect    = "Allow"
        Action    = "iam:PassRole"
        Resource  = [aws_iam_role.functions.arn, aws_iam_role.functions_execution.arn]
        Condition = { StringEquals = { "iam:PassedToService" = "ecs-tasks.amazonaws.com" } }
      },
      {
        Sid      = "ReadAndRemoveOutputOfFunctions"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:DeleteLogStream", "logs:DescribeLogStreams", "logs:GetLogEvents"]
        Resource = [aws_cloudwatch_log_group.functions.arn, "${aws_cloudwatch_log_group.functions.arn}:*"]
      },
      {
        Sid      = "FindTheLogGroup"
        Effect   = "Allow"
        Action   = "logs:DescribeLogGroups"
        Resource = "arn:${local.partition}:logs:${local.region}:${local.account}:log-group:*"
      },
      # What it hands to those who deploy acts with these.
      {
        Sid    = "PushImagesOfFunctions"
        Effect = "Allow"
        Action = ["ecr:CompleteLayerUpload", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart"]

        Resource = aws_ecr_repository.functions.arn
      },
      {
        Sid      = "LookAfterImagesOfFunctions"
        Effect   = "Allow"
        Action   = ["ecr:BatchDeleteImage", "ecr:DescribeImages", "ecr:DescribeRepositories", "ecr:GetLifecyclePolicy"]
        Resource = aws_ecr_repository.functions.arn
      },
      {
        Sid      = "ReadAndRotateTheKeysOfEnvValues"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"]
        Resource = aws_secretsmanager_secret.key_ring.arn
      },
      {
        Sid      = "ReadTheDatabasesPassword"
        Effect   = "Allow"
        Action   = "secretsmanager:GetSecretValue"
        Resource = local.database_secret_arn
      },
    ])
  })
}

# --- what ECS does to start it ---------------------------------------------------------------------------------

resource "aws_iam_role" "control_plane_execution" {
  name               = "${var.name}-control-plane-start"
  description        = "What ECS may do to start the control plane of ${var.name}"
  assume_role_policy = local.assume_by_tasks
}

resource "aws_iam_role_policy" "control_plane_execution" {
  name = "start"
  role = aws_iam_role.control_plane_execution.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "LogInToEcr"
        Effect   = "Allow"
        Action   = "ecr:GetAuthorizationToken"
        Resource = "*"
      },
      # Its image may lie in a repository of any name.
      {
        Sid      = "PullItsImage"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = "arn:${local.partition}:ecr:*:*:repository/*"
      },
      {
        Sid      = "WriteItsLog"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.control_plane.arn}:*"
      },
      {
        Sid      = "HandItItsSecrets"
        Effect   = "Allow"
        Action   = "secretsmanager:GetSecretValue"
        Resource = aws_secretsmanager_secret.admin_key.arn
      },
    ]
  })
}

# --- functions -------------------------------------------------------------------------------------------------

# Without a policy of its own: what functions may do in AWS is the user's to say.
resource "aws_iam_role" "functions" {
  name               = "${var.name}-functions"
  description        = "What functions that ${var.name} runs may do"
  assume_role_policy = local.assume_by_tasks
}

resource "aws_iam_role_policy_attachment" "functions" {
  count = length(var.function_policy_arns)

  role       = aws_iam_role.functions.name
  policy_arn = var.function_policy_arns[count.index]
}

resource "aws_iam_role" "functions_execution" {
  name               = "${var.name}-functions-start"
  description        = "What ECS may do to start functions of ${var.name}"
  assume_role_policy = local.assume_by_tasks
}

# No secrets: what a function needs to know it fetches from the control plane.
resource "aws_iam_role_policy" "functions_execution" {
  name = "start"
  role = aws_iam_role.functions_execution.name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(local.pull_functions, [
      {
        Sid      = "WriteTheirOutput"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.functions.arn}:*"
      },
    ])
  })
}
