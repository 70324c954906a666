# A VPC with three kinds of subnets: public ones for load balancer and NAT, private ones for tasks, and some without a way out for the database.

locals {
  makes_vpc = var.existing_vpc == null
  zones     = local.makes_vpc ? slice(data.aws_availability_zones.available[0].names, 0, var.availability_zones) : []

  vpc_id              = local.makes_vpc ? aws_vpc.this[0].id : var.existing_vpc.vpc_id
  public_subnet_ids   = local.makes_vpc ? aws_subnet.public[*].id : var.existing_vpc.public_subnet_ids
  private_subnet_ids  = local.makes_vpc ? aws_subnet.private[*].id : var.existing_vpc.private_subnet_ids
  database_subnet_ids = local.makes_vpc ? aws_subnet.database[*].id : coalesce(var.existing_vpc.database_subnet_ids, var.existing_vpc.private_subnet_ids)

  # Where the load balancers' own addresses lie.
  load_balancer_cidr_blocks = distinct(local.makes_vpc ? concat(aws_subnet.public[*].cidr_block, aws_subnet.private[*].cidr_block) : data.aws_subnet.of_load_balancers[*].cidr_block)
}

data "aws_availability_zones" "available" {
  count = local.makes_vpc ? 1 : 0

  state = "available"
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_subnet" "of_load_balancers" {
  count = local.makes_vpc ? 0 : length(var.existing_vpc.public_subnet_ids) + length(var.existing_vpc.private_subnet_ids)

  id = concat(var.existing_vpc.public_subnet_ids, var.existing_vpc.private_subnet_ids)[count.index]
}

resource "aws_vpc" "this" {
  count = local.makes_vpc ? 1 : 0

  cidr_block = var.vpc_cidr_block
  # Both: control planes call each other by their tasks' host names, and the private zone answers.
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

# The group that whoever names none would get lets nothing through.
resource "aws_default_security_group" "none" {
  count = local.makes_vpc ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-unused" }
}

resource "aws_internet_gateway" "this" {
  count = local.makes_vpc ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = { Name = var.name }
}

# Of sixteen parts: private 8 to 15 (two or four each), public 0 to 2, database 4 to 6.
resource "aws_subnet" "public" {
  count = length(local.zones)

  vpc_id                  = aws_vpc.this[0].id
  availability_zone       = local.zones[count.index]
  cidr_block              = cidrsubnet(var.vpc_cidr_block, 4, count.index)
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-public-${local.zones[count.index]}" }

  # A zone that AWS adds, or that is away for a day, moves no subnet.
  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_subnet" "database" {
  count = length(local.zones)

  vpc_id            = aws_vpc.this[0].id
  availability_zone = local.zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr_block, 4, 4 + count.index)
  tags              = { Name = "${var.name}-database-${local.zones[count.index]}" }

  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_subnet" "private" {
  count = length(local.zones)

  vpc_id            = aws_vpc.this[0].id
  availability_zone = local.zones[count.index]
  cidr_block        = length(local.zones) == 2 ? cidrsubnet(var.vpc_cidr_block, 2, 2 + count.index) : cidrsubnet(var.vpc_cidr_block, 3, 4 + count.index)
  tags              = { Name = "${var.name}-private-${local.zones[count.index]}" }

  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_route_table" "public" {
  count = local.makes_vpc ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-public" }
}

resource "aws_route" "public" {
  count = local.makes_vpc ? 1 : 0

  route_table_id         = aws_route_table.public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  count = length(local.zones)

  subnet_id      = aws_subnet.public[count.index].id
  route_table_id = aws_route_table.public[0].id
}

resource "aws_eip" "nat" {
  count = local.makes_vpc ? var.nat_gateways : 0

  domain     = "vpc"
  tags       = { Name = "${var.name}-nat-${count.index}" }
  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  count = local.makes_vpc ? var.nat_gateways : 0

  allocation_id = aws_eip.nat[count.index].id
  subnet_id     = aws_subnet.public[count.index].id
  tags          = { Name = "${var.name}-${count.index}" }
  depends_on    = [aws_route.public]
}

resource "aws_route_table" "private" {
  count = length(local.zones)

  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-private-${local.zones[count.index]}" }
}

resource "aws_route" "private" {
  count = length(local.zones)

  route_table_id         = aws_route_table.private[count.index].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[min(count.index, var.nat_gateways - 1)].id
}

resource "aws_route_table_association" "private" {
  count = length(local.zones)

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private[count.index].id
}

# Only the VPC's own addresses.
resource "aws_route_table" "database" {
  count = local.makes_vpc ? 1 : 0

  vpc_id = aws_vpc.this[0].id
  tags   = { Name = "${var.name}-database" }
}

resource "aws_route_table_association" "database" {
  count = length(local.zones)

  subnet_id      = aws_subnet.database[count.index].id
  route_table_id = aws_route_table.database[0].id
}

# Layers of images come from S3: this way costs nothing, the NAT gateway charges for each GB.
resource "aws_vpc_endpoint" "s3" {
  count = local.makes_vpc ? 1 : 0

  vpc_id            = aws_vpc.this[0].id
  service_name      = "com.amazonaws.${local.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = aws_route_table.private[*].id
  tags              = { Name = "${var.name}-s3" }
}
