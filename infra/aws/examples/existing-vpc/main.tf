# In a VPC of yours, with a certificate that ACM has, for people on the company's network only, and without a zone in Route 53: the
# output load_balancer_name is the target of a CNAME record that you make.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = "eu-west-2"
}

variable "image" {
  type = string
}

variable "certificate_arn" {
  type = string
}

variable "vpc" {
  type = object({
    vpc_id             = string
    public_subnet_ids  = list(string)
    private_subnet_ids = list(string)
  })
}

variable "web_application_security_group_id" {
  type = string
}

module "multinode" {
  source = "../.."

  domain_name        = "multinode.corp.example.com"
  certificate_arn    = var.certificate_arn
  existing_vpc       = var.vpc
  internal           = true
  client_cidr_blocks = ["10.0.0.0/8"]
  # An application in the VPC that starts functions.
  client_security_group_ids = [var.web_application_security_group_id]
  image                     = var.image

  # A smaller one to try it out: one control plane, a database in one zone, and everything may be destroyed again.
  control_plane_count = 1
  database            = { instance_class = "db.t4g.micro", multi_az = false }
  deletion_protection = false
  settings            = { MULTINODE_CAPACITY = "cpu=16,memory=64GiB" }
}

output "url" {
  value = module.multinode.url
}

output "login" {
  value = module.multinode.login
}

output "load_balancer_name" {
  value = module.multinode.load_balancer_name
}
