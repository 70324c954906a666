variable "name" {
  description = "Begins the name of everything that is made. Another name is another installation."
  type        = string
  default     = "multinode"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name)) && !endswith(var.name, "-") && !strcontains(var.name, "--")
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, begins with a letter, and has no hyphen at its end or beside another."
  }
}

# --- who calls it, and by which name ---------------------------------------------------------------------------

variable "domain_name" {
  description = "Name by which people and applications call the control plane, for example multinode.example.com. Inside the VPC it leads to the internal load balancer."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9-]+(\\.[a-z0-9-]+)+$", var.domain_name))
    error_message = "The domain name is written like multinode.example.com, in lower case, without https://."
  }
}

variable "route53_zone_id" {
  description = "Public hosted zone of the domain name: the record, and without certificate_arn the certificate, are made in it. Without it, make a CNAME record to the output load_balancer_name yourself."
  type        = string
  default     = null

  validation {
    condition     = var.route53_zone_id != null || var.certificate_arn != null
    error_message = "A certificate is needed: give certificate_arn, or route53_zone_id, in which one is made."
  }
}

variable "certificate_arn" {
  description = "Certificate of ACM in this region that is valid for the domain name. Without it one is made in route53_zone_id."
  type        = string
  default     = null
}

variable "client_cidr_blocks" {
  description = "IPv4 networks from which people and applications may call the control plane. No default: [\"0.0.0.0/0\"] is everybody, who then needs a key."
  type        = list(string)

  validation {
    condition     = alltrue([for block in var.client_cidr_blocks : can(cidrhost(block, 0))])
    error_message = "Each is a network like 203.0.113.0/24."
  }
}

variable "client_security_group_ids" {
  description = "Security groups in the VPC whose members may call the control plane too, over the internal load balancer."
  type        = list(string)
  default     = []
}

variable "internal" {
  description = "Whether the load balancer for clients has private addresses only, for those who come over a VPN or a peered network."
  type        = bool
  default     = false
}

variable "access_logs_bucket" {
  description = "S3 bucket for the access logs of both load balancers, with a policy that lets load balancers write. None: no access logs."
  type        = string
  default     = null
}

# --- network ---------------------------------------------------------------------------------------------------

variable "existing_vpc" {
  description = "A VPC of yours, with DNS hostnames and DNS resolution on, instead of a new one. Each kind of subnet in two availability zones or more; private ones with a way out (NAT). Databases lie in the private subnets where they have none of their own."
  type = object({
    vpc_id              = string
    public_subnet_ids   = list(string)
    private_subnet_ids  = list(string)
    database_subnet_ids = optional(list(string))
  })
  default = null

  validation {
    condition     = var.existing_vpc == null || min(try(length(var.existing_vpc.public_subnet_ids), 2), try(length(var.existing_vpc.private_subnet_ids), 2)) >= 2
    error_message = "Load balancers and database need subnets in two availability zones at least."
  }
}

variable "vpc_cidr_block" {
  description = "Addresses of the new VPC, a /16 to /20. Each function that runs takes one of the private subnets' addresses, which are half of it."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr_block, 0)) && try(tonumber(split("/", var.vpc_cidr_block)[1]) >= 16 && tonumber(split("/", var.vpc_cidr_block)[1]) <= 20, false)
    error_message = "The network is a /16 to /20 like 10.42.0.0/16."
  }
}

variable "availability_zones" {
  description = "How many availability zones the new VPC uses."
  type        = number
  default     = 2

  validation {
    condition     = contains([2, 3], var.availability_zones)
    error_message = "2 or 3 availability zones."
  }
}

variable "nat_gateways" {
  description = "NAT gateways of the new VPC: 1, or as many as there are zones, so that the loss of one zone leaves the others a way out."
  type        = number
  default     = 1

  validation {
    condition     = var.nat_gateways == 1 || var.nat_gateways == var.availability_zones
    error_message = "One NAT gateway, or one for each availability zone."
  }
}

# --- the control plane -----------------------------------------------------------------------------------------

variable "image" {
  description = "The control plane's image, made from infra/server/Dockerfile: repository:tag, or better repository@sha256:…"
  type        = string

  validation {
    condition     = can(regex("^[^\\s/]+/[^\\s]+(:[\\w.-]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "The image is named with its registry and a tag or digest, and not :latest, of which nobody knows what it is."
  }
}

variable "cpu_architecture" {
  description = "What the control plane's image is made for: X86_64 or ARM64."
  type        = string
  default     = "X86_64"

  validation {
    condition     = contains(["X86_64", "ARM64"], var.cpu_architecture)
    error_message = "X86_64 or ARM64."
  }
}

variable "control_plane_count" {
  description = "Control planes that run. All serve, one leads; with two a new one is leading within 10 s of the loss of the other."
  type        = number
  default     = 2

  validation {
    condition     = var.control_plane_count >= 1 && var.control_plane_count <= 10
    error_message = "1 to 10."
  }
}

variable "control_plane_size" {
  description = "CPU units and MiB of each control plane: a size of Fargate."
  type = object({
    cpu    = number
    memory = number
  })
  default = {
    cpu    = 512
    memory = 1024
  }
}

variable "settings" {
  description = "Further settings of the control plane as environment variables (docs/reference/settings.md), for example { MULTINODE_CAPACITY = \"cpu=64,memory=256GiB\" }. Task definitions can be read by many: no secrets here."
  type        = map(string)
  default     = {}

  validation {
    condition     = !anytrue([for name in keys(var.settings) : can(regex("(_KEY|PASSWORD|TOKEN)$", name))])
    error_message = "A key, password or token would be readable in the task definition."
  }
}

# --- what functions may ----------------------------------------------------------------------------------------

variable "function_cpu_architecture" {
  description = "What functions run on, and their images are built for: X86_64, or ARM64, which costs a fifth less."
  type        = string
  default     = "X86_64"

  validation {
    condition     = contains(["X86_64", "ARM64"], var.function_cpu_architecture)
    error_message = "X86_64 or ARM64."
  }
}

variable "function_spot" {
  description = "Whether functions run on Fargate Spot, which costs about a third and may be taken away with two minutes' notice: they are then lost, and tried again as their max_retries says."
  type        = bool
  default     = false
}

variable "function_policy_arns" {
  description = "IAM policies for functions: what their code may do in AWS. Without any it may do nothing."
  type        = list(string)
  default     = []
}

variable "function_security_group_ids" {
  description = "Further security groups for functions, for example one that your database lets in."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.function_security_group_ids) <= 4
    error_message = "A task has at most five security groups; one is the module's."
  }
}

variable "function_egress_cidr_blocks" {
  description = "IPv4 networks that functions may reach. They always reach the control plane. To be pulled from ECR and to write logs, a task needs the addresses of AWS, or VPC endpoints."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

# --- database --------------------------------------------------------------------------------------------------

variable "database" {
  description = "The PostgreSQL database. Storage in GiB, which grows by itself up to max_storage. ca_file: path in your image of Amazon's certificates for RDS, with which the database's is verified."
  type = object({
    instance_class        = optional(string, "db.t4g.small")
    engine_version        = optional(string, "16")
    multi_az              = optional(bool, true)
    storage               = optional(number, 20)
    max_storage           = optional(number, 200)
    backup_retention_days = optional(number, 14)
    ca_file               = optional(string)
  })
  default = {}

  validation {
    condition     = var.database.backup_retention_days >= 1 && var.database.backup_retention_days <= 35
    error_message = "Backups are kept for 1 to 35 days."
  }
}

# --- care ------------------------------------------------------------------------------------------------------

variable "deletion_protection" {
  description = "Whether database, load balancers and images refuse to be destroyed. Switch it off, and apply that, before you destroy the installation."
  type        = bool
  default     = true
}

variable "log_retention_days" {
  description = "How long logs of the control plane, of functions and of the database are kept. `multinode logs` has nothing older."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "CloudWatch keeps logs for 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653 days."
  }
}

variable "alarm_emails" {
  description = "Addresses that alarms are sent to. Each gets a letter from AWS first, and has to agree."
  type        = list(string)
  default     = []
}
