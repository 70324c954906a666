# A whole installation in an account of its own: VPC, certificate and record are made. Fill in terraform.tfvars, then `terraform apply`.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }

  # The state says how everything is connected. Keep it where your team shares it, and nobody else:
  # backend "s3" {
  #   bucket       = "my-terraform-states"
  #   key          = "multinode.tfstate"
  #   region       = "eu-west-2"
  #   use_lockfile = true
  # }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { Application = "multinode" }
  }
}

variable "region" {
  type    = string
  default = "eu-west-2"
}

variable "domain_name" {
  type = string
}

variable "route53_zone_id" {
  type = string
}

variable "image" {
  type = string
}

variable "client_cidr_blocks" {
  type = list(string)
}

variable "alarm_emails" {
  type    = list(string)
  default = []
}

module "multinode" {
  source = "../.."

  domain_name        = var.domain_name
  route53_zone_id    = var.route53_zone_id
  client_cidr_blocks = var.client_cidr_blocks
  image              = var.image
  alarm_emails       = var.alarm_emails

  function_policy_arns = [aws_iam_policy.functions.arn]
}

# What functions may do in AWS: an example, in which they may read and write the objects of one bucket.
resource "aws_s3_bucket" "data" {
  bucket_prefix = "multinode-data-"
}

resource "aws_iam_policy" "functions" {
  name = "multinode-functions-data"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["s3:GetObject", "s3:PutObject"]
      Resource = "${aws_s3_bucket.data.arn}/*"
    }]
  })
}

output "url" {
  value = module.multinode.url
}

output "login" {
  value = module.multinode.login
}
