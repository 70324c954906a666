# `terraform test` in infra/aws: plans alone, with your login of AWS, and makes nothing. (Terraform cannot mock a provider of which something
# ephemeral is used.) What is planned and made is tested further in tests/terraform.

variables {
  domain_name        = "multinode.example.com"
  route53_zone_id    = "Z0123456789ABCDEFGHIJ"
  client_cidr_blocks = ["203.0.113.0/24"]
  image              = "registry.example.com/multinode-server:2.0.0"
}

run "makes_a_network_and_two_control_planes" {
  command = plan

  assert {
    condition     = length(aws_subnet.private) == 2 && length(aws_nat_gateway.this) == 1
    error_message = "Two zones, and one way out."
  }
  assert {
    condition     = aws_ecs_service.control_plane.desired_count == 2
    error_message = "Two control planes."
  }
  assert {
    condition     = output.url == "https://multinode.example.com"
    error_message = "The domain name is where it is."
  }
}

run "has_a_way_out_in_each_of_three_zones" {
  command = plan

  variables {
    availability_zones = 3
    nat_gateways       = 3
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3 && length(distinct(aws_subnet.private[*].cidr_block)) == 3
    error_message = "Three of each."
  }
}

run "lies_in_a_network_that_is_there" {
  command = plan

  override_data {
    target = data.aws_subnet.of_load_balancers
    values = { cidr_block = "10.7.0.0/24" }
  }

  variables {
    existing_vpc = {
      vpc_id             = "vpc-1"
      public_subnet_ids  = ["subnet-1", "subnet-2"]
      private_subnet_ids = ["subnet-3", "subnet-4"]
    }
  }

  assert {
    condition     = length(aws_vpc.this) == 0 && length(aws_subnet.private) == 0
    error_message = "Nothing of a network is made."
  }
  assert {
    condition     = aws_db_subnet_group.this.subnet_ids == toset(["subnet-3", "subnet-4"])
    error_message = "The database lies in the private subnets where it has none of its own."
  }
}

run "needs_a_certificate" {
  command = plan

  variables {
    route53_zone_id = null
  }

  expect_failures = [var.route53_zone_id]
}
