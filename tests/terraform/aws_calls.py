"""What the stand-in provider makes in an emulator of AWS: the calls that the real one makes, as far as what is planned can be wrong for AWS.

botocore checks names, types and lengths of arguments; the emulator what it knows. A type without a function here is made nowhere, and gets
made-up values.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import boto3

Value = dict[str, Any]
Maker = Callable[["Calls", Value], Value]
CREATE: dict[str, Maker] = {}


def makes(kind: str) -> Callable[[Maker], Maker]:
    """Registers the function of a type: it takes the planned values, and returns those that AWS computes."""

    def registered(maker: Maker) -> Maker:
        CREATE[kind] = maker
        return maker

    return registered


class Calls:
    """The emulator's clients."""

    def __init__(self, endpoint: str, region: str) -> None:
        self.region = region
        # Never the machine's own login: whatever this is told, it goes to the emulator.
        self._session = boto3.session.Session("x", "x", region_name=region)
        self._endpoint = endpoint
        self._clients: dict[str, Any] = {}

    def __call__(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self._session.client(service, endpoint_url=self._endpoint)
        return self._clients[service]

    def create(self, kind: str, value: Value) -> Value:
        """What AWS computes of it."""
        maker = CREATE.get(kind)
        return maker(self, known(value)) if maker else {}


def known(value: Any) -> Any:
    """Without what is null, or not known yet."""
    if isinstance(value, dict):
        cleaned = {name: known(each) for name, each in value.items()}
        return {name: each for name, each in cleaned.items() if each is not None}
    if isinstance(value, list):
        return [known(each) for each in value]
    return value if isinstance(value, (str, int, float, bool)) else None


def some(value: Value, **names: str) -> Value:
    """Arguments of a call, by the names of those of Terraform; what is not there is left out."""
    return {ours: value[theirs] for ours, theirs in names.items() if theirs in value}


# --- network ------------------------------------------------------------------------------------------------


@makes("aws_vpc")
def vpc(aws: Calls, value: Value) -> Value:
    made = aws("ec2").create_vpc(CidrBlock=value["cidr_block"])["Vpc"]["VpcId"]
    for argument, name in (
        ("EnableDnsSupport", "enable_dns_support"),
        ("EnableDnsHostnames", "enable_dns_hostnames"),
    ):
        aws("ec2").modify_vpc_attribute(VpcId=made, **{argument: {"Value": value[name]}})
    return {"id": made}


@makes("aws_subnet")
def subnet(aws: Calls, value: Value) -> Value:
    made = aws("ec2").create_subnet(
        VpcId=value["vpc_id"],
        CidrBlock=value["cidr_block"],
        AvailabilityZone=value["availability_zone"],
    )
    return {"id": made["Subnet"]["SubnetId"]}


@makes("aws_internet_gateway")
def internet_gateway(aws: Calls, value: Value) -> Value:
    made = aws("ec2").create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    aws("ec2").attach_internet_gateway(InternetGatewayId=made, VpcId=value["vpc_id"])
    return {"id": made}


@makes("aws_eip")
def eip(aws: Calls, value: Value) -> Value:
    made = aws("ec2").allocate_address(Domain=value["domain"])
    return {"id": made["AllocationId"], "public_ip": made["PublicIp"]}


@makes("aws_nat_gateway")
def nat_gateway(aws: Calls, value: Value) -> Value:
    made = aws("ec2").create_nat_gateway(
        SubnetId=value["subnet_id"], AllocationId=value["allocation_id"]
    )
    return {"id": made["NatGateway"]["NatGatewayId"]}


@makes("aws_route_table")
def route_table(aws: Calls, value: Value) -> Value:
    made = aws("ec2").create_route_table(VpcId=value["vpc_id"])
    return {"id": made["RouteTable"]["RouteTableId"]}


@makes("aws_route")
def route(aws: Calls, value: Value) -> Value:
    names = {"GatewayId": "gateway_id", "NatGatewayId": "nat_gateway_id"}
    aws("ec2").create_route(
        RouteTableId=value["route_table_id"],
        DestinationCidrBlock=value["destination_cidr_block"],
        **some(value, **names),
    )
    return {}


@makes("aws_route_table_association")
def route_table_association(aws: Calls, value: Value) -> Value:
    arguments = some(value, RouteTableId="route_table_id", SubnetId="subnet_id")
    return {"id": aws("ec2").associate_route_table(**arguments)["AssociationId"]}


@makes("aws_security_group")
def security_group(aws: Calls, value: Value) -> Value:
    made = aws("ec2").create_security_group(
        GroupName=value["name"], Description=value["description"], VpcId=value["vpc_id"]
    )
    group = made["GroupId"]
    everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    # As Terraform does: nothing goes out that no rule names.
    aws("ec2").revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
    return {"id": group}


def permission(value: Value) -> list[Value]:
    made = some(value, IpProtocol="ip_protocol", FromPort="from_port", ToPort="to_port")
    described = {"Description": value["description"]}
    if "cidr_ipv4" in value:
        return [{**made, "IpRanges": [{"CidrIp": value["cidr_ipv4"], **described}]}]
    pair = {"GroupId": value["referenced_security_group_id"], **described}
    return [{**made, "UserIdGroupPairs": [pair]}]


@makes("aws_vpc_security_group_ingress_rule")
def ingress_rule(aws: Calls, value: Value) -> Value:
    aws("ec2").authorize_security_group_ingress(
        GroupId=value["security_group_id"], IpPermissions=permission(value)
    )
    return {}


@makes("aws_vpc_security_group_egress_rule")
def egress_rule(aws: Calls, value: Value) -> Value:
    aws("ec2").authorize_security_group_egress(
        GroupId=value["security_group_id"], IpPermissions=permission(value)
    )
    return {}


# --- load balancers and names -------------------------------------------------------------------------------


@makes("aws_lb")
def load_balancer(aws: Calls, value: Value) -> Value:
    made = aws("elbv2").create_load_balancer(
        Name=value["name"],
        Subnets=value["subnets"],
        SecurityGroups=value["security_groups"],
        Scheme="internal" if value["internal"] else "internet-facing",
        Type=value["load_balancer_type"],
    )["LoadBalancers"][0]
    arn = made["LoadBalancerArn"]
    return {
        "id": arn,
        "arn": arn,
        "arn_suffix": arn.partition("loadbalancer/")[2],
        "dns_name": made["DNSName"],
        "zone_id": made["CanonicalHostedZoneId"],
    }


@makes("aws_lb_target_group")
def target_group(aws: Calls, value: Value) -> Value:
    check = value["health_check"][0]
    made = aws("elbv2").create_target_group(
        Name=value["name"],
        Protocol=value["protocol"],
        Port=int(value["port"]),
        VpcId=value["vpc_id"],
        TargetType=value["target_type"],
        HealthCheckPath=check["path"],
        HealthCheckIntervalSeconds=int(check["interval"]),
        HealthCheckTimeoutSeconds=int(check["timeout"]),
        HealthyThresholdCount=int(check["healthy_threshold"]),
        UnhealthyThresholdCount=int(check["unhealthy_threshold"]),
        Matcher={"HttpCode": check["matcher"]},
    )["TargetGroups"][0]
    arn = made["TargetGroupArn"]
    return {"id": arn, "arn": arn, "arn_suffix": arn.rpartition(":")[2]}


@makes("aws_lb_listener")
def listener(aws: Calls, value: Value) -> Value:
    action = value["default_action"][0]
    made = aws("elbv2").create_listener(
        LoadBalancerArn=value["load_balancer_arn"],
        Protocol=value["protocol"],
        Port=int(value["port"]),
        SslPolicy=value["ssl_policy"],
        Certificates=[{"CertificateArn": value["certificate_arn"]}],
        DefaultActions=[{"Type": action["type"], "TargetGroupArn": action["target_group_arn"]}],
    )
    return {"arn": made["Listeners"][0]["ListenerArn"]}


@makes("aws_acm_certificate")
def certificate(aws: Calls, value: Value) -> Value:
    arn = aws("acm").request_certificate(
        DomainName=value["domain_name"], ValidationMethod=value["validation_method"]
    )["CertificateArn"]
    return {"arn": arn, "id": arn}


@makes("aws_acm_certificate_validation")
def certificate_validation(_aws: Calls, value: Value) -> Value:
    return {"id": value["certificate_arn"]}


@makes("aws_route53_zone")
def zone(aws: Calls, value: Value) -> Value:
    made = aws("route53").create_hosted_zone(
        Name=value["name"],
        CallerReference=value["name"],
        VPC={"VPCRegion": aws.region, "VPCId": value["vpc"][0]["vpc_id"]},
        HostedZoneConfig={"Comment": value["comment"], "PrivateZone": True},
    )
    name = made["HostedZone"]["Id"].rpartition("/")[2]
    return {"id": name, "zone_id": name}


# --- data and secrets ---------------------------------------------------------------------------------------


@makes("aws_db_subnet_group")
def db_subnet_group(aws: Calls, value: Value) -> Value:
    aws("rds").create_db_subnet_group(
        DBSubnetGroupName=value["name"],
        DBSubnetGroupDescription=value["description"],
        SubnetIds=value["subnet_ids"],
    )
    return {"id": value["name"]}


@makes("aws_db_parameter_group")
def db_parameter_group(aws: Calls, value: Value) -> Value:
    aws("rds").create_db_parameter_group(
        DBParameterGroupName=value["name"],
        DBParameterGroupFamily=value["family"],
        Description=value["description"],
    )
    return {"id": value["name"]}


@makes("aws_db_instance")
def db_instance(aws: Calls, value: Value) -> Value:
    names = {
        "DBInstanceIdentifier": "identifier", "Engine": "engine", "EngineVersion": "engine_version", "DBInstanceClass": "instance_class",
        "MultiAZ": "multi_az", "StorageType": "storage_type", "StorageEncrypted": "storage_encrypted", "AllocatedStorage": "allocated_storage",
        "MaxAllocatedStorage": "max_allocated_storage", "DBName": "db_name", "MasterUsername": "username",
        "ManageMasterUserPassword": "manage_master_user_password", "Port": "port", "DBSubnetGroupName": "db_subnet_group_name",
        "VpcSecurityGroupIds": "vpc_security_group_ids", "PubliclyAccessible": "publicly_accessible",
        "BackupRetentionPeriod": "backup_retention_period", "CopyTagsToSnapshot": "copy_tags_to_snapshot",
        "DeletionProtection": "deletion_protection",
        "EnableCloudwatchLogsExports": "enabled_cloudwatch_logs_exports", "DBParameterGroupName": "parameter_group_name",
    }  # fmt: skip
    made = aws("rds").create_db_instance(**some(value, **names))["DBInstance"]
    secret = {"secret_arn": made["MasterUserSecret"]["SecretArn"], "secret_status": "active"}
    return {
        "id": value["identifier"],
        "arn": made["DBInstanceArn"],
        "address": f"{value['identifier']}.standin.{aws.region}.rds.amazonaws.com",
        "master_user_secret": [{**secret, "kms_key_id": ""}],
    }


@makes("aws_secretsmanager_secret")
def secret(aws: Calls, value: Value) -> Value:
    name = f"{value['name_prefix']}20261124"
    arn = aws("secretsmanager").create_secret(Name=name, Description=value["description"])["ARN"]
    return {"arn": arn, "id": arn, "name": name}


@makes("aws_secretsmanager_secret_version")
def secret_version(aws: Calls, value: Value) -> Value:
    made = aws("secretsmanager").put_secret_value(
        SecretId=value["secret_id"], SecretString=value["secret_string_wo"]
    )
    return {"arn": made["ARN"], "version_id": made["VersionId"]}


# --- where functions run ------------------------------------------------------------------------------------


@makes("aws_ecs_cluster")
def cluster(aws: Calls, value: Value) -> Value:
    made = aws("ecs").create_cluster(clusterName=value["name"], settings=value["setting"])
    arn = made["cluster"]["clusterArn"]
    return {"arn": arn, "id": arn}


@makes("aws_ecs_cluster_capacity_providers")
def capacity_providers(aws: Calls, value: Value) -> Value:
    aws("ecs").put_cluster_capacity_providers(
        cluster=value["cluster_name"],
        capacityProviders=value["capacity_providers"],
        defaultCapacityProviderStrategy=[
            {"capacityProvider": each["capacity_provider"], "weight": int(each["weight"])}
            for each in value["default_capacity_provider_strategy"]
        ],
    )
    return {"id": value["cluster_name"]}


@makes("aws_ecr_repository")
def repository(aws: Calls, value: Value) -> Value:
    made = aws("ecr").create_repository(
        repositoryName=value["name"],
        imageTagMutability=value["image_tag_mutability"],
        imageScanningConfiguration={
            "scanOnPush": value["image_scanning_configuration"][0]["scan_on_push"]
        },
    )["repository"]
    return {
        "arn": made["repositoryArn"],
        "repository_url": made["repositoryUri"],
        "id": value["name"],
    }


@makes("aws_ecr_lifecycle_policy")
def lifecycle_policy(aws: Calls, value: Value) -> Value:
    aws("ecr").put_lifecycle_policy(
        repositoryName=value["repository"], lifecyclePolicyText=value["policy"]
    )
    return {"id": value["repository"]}


@makes("aws_ecs_task_definition")
def task_definition(aws: Calls, value: Value) -> Value:
    platform = value["runtime_platform"][0]
    made = aws("ecs").register_task_definition(
        family=value["family"],
        containerDefinitions=json.loads(value["container_definitions"]),
        volumes=[{"name": each["name"]} for each in value["volume"]],
        requiresCompatibilities=value["requires_compatibilities"],
        networkMode=value["network_mode"],
        cpu=value["cpu"],
        memory=value["memory"],
        executionRoleArn=value["execution_role_arn"],
        taskRoleArn=value["task_role_arn"],
        runtimePlatform={
            "operatingSystemFamily": platform["operating_system_family"],
            "cpuArchitecture": platform["cpu_architecture"],
        },
    )["taskDefinition"]
    return {"arn": made["taskDefinitionArn"], "revision": made["revision"], "id": value["family"]}


@makes("aws_ecs_service")
def service(aws: Calls, value: Value) -> Value:
    network = value["network_configuration"][0]
    made = aws("ecs").create_service(
        cluster=value["cluster"],
        serviceName=value["name"],
        taskDefinition=value["task_definition"],
        desiredCount=int(value["desired_count"]),
        launchType=value["launch_type"],
        platformVersion=value["platform_version"],
        propagateTags=value["propagate_tags"],
        availabilityZoneRebalancing=value["availability_zone_rebalancing"],
        healthCheckGracePeriodSeconds=int(value["health_check_grace_period_seconds"]),
        deploymentConfiguration={
            "deploymentCircuitBreaker": value["deployment_circuit_breaker"][0],
            "maximumPercent": int(value["deployment_maximum_percent"]),
            "minimumHealthyPercent": int(value["deployment_minimum_healthy_percent"]),
        },
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": network["subnets"],
                "securityGroups": network["security_groups"],
                "assignPublicIp": "ENABLED" if network["assign_public_ip"] else "DISABLED",
            }
        },
        loadBalancers=[
            {
                "targetGroupArn": each["target_group_arn"],
                "containerName": each["container_name"],
                "containerPort": int(each["container_port"]),
            }
            for each in value["load_balancer"]
        ],
    )
    return {"id": made["service"]["serviceArn"]}


@makes("aws_cloudwatch_log_group")
def log_group(aws: Calls, value: Value) -> Value:
    name = value["name"]
    aws("logs").create_log_group(logGroupName=name)
    days = int(value["retention_in_days"])
    aws("logs").put_retention_policy(logGroupName=name, retentionInDays=days)
    (found,) = (
        each
        for each in aws("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        if each["logGroupName"] == name
    )
    return {"arn": found["arn"].removesuffix(":*"), "id": name}


# --- who may what -------------------------------------------------------------------------------------------


@makes("aws_iam_role")
def role(aws: Calls, value: Value) -> Value:
    made = aws("iam").create_role(
        RoleName=value["name"],
        Description=value["description"],
        AssumeRolePolicyDocument=value["assume_role_policy"],
    )["Role"]
    return {"arn": made["Arn"], "id": value["name"]}


@makes("aws_iam_role_policy")
def role_policy(aws: Calls, value: Value) -> Value:
    aws("iam").put_role_policy(
        RoleName=value["role"], PolicyName=value["name"], PolicyDocument=value["policy"]
    )
    return {"id": f"{value['role']}:{value['name']}"}


@makes("aws_iam_policy")
def policy(aws: Calls, value: Value) -> Value:
    made = aws("iam").create_policy(PolicyName=value["name"], PolicyDocument=value["policy"])
    return {"arn": made["Policy"]["Arn"], "id": made["Policy"]["Arn"]}


@makes("aws_iam_role_policy_attachment")
def role_policy_attachment(aws: Calls, value: Value) -> Value:
    aws("iam").attach_role_policy(RoleName=value["role"], PolicyArn=value["policy_arn"])
    return {"id": f"{value['role']}-{value['policy_arn']}"}


# --- alarms -------------------------------------------------------------------------------------------------


@makes("aws_sns_topic")
def topic(aws: Calls, value: Value) -> Value:
    arn = aws("sns").create_topic(Name=value["name"])["TopicArn"]
    return {"arn": arn, "id": arn}


@makes("aws_sns_topic_policy")
def topic_policy(aws: Calls, value: Value) -> Value:
    aws("sns").set_topic_attributes(
        TopicArn=value["arn"], AttributeName="Policy", AttributeValue=value["policy"]
    )
    return {"id": value["arn"]}


@makes("aws_cloudwatch_metric_alarm")
def alarm(aws: Calls, value: Value) -> Value:
    aws("cloudwatch").put_metric_alarm(
        AlarmName=value["alarm_name"],
        AlarmDescription=value["alarm_description"],
        Namespace=value["namespace"],
        MetricName=value["metric_name"],
        Dimensions=[{"Name": name, "Value": each} for name, each in value["dimensions"].items()],
        Statistic=value["statistic"],
        ComparisonOperator=value["comparison_operator"],
        Threshold=float(value["threshold"]),
        Period=int(value["period"]),
        EvaluationPeriods=int(value["evaluation_periods"]),
        TreatMissingData=value["treat_missing_data"],
        AlarmActions=value["alarm_actions"],
        OKActions=value["ok_actions"],
    )
    return {"id": value["alarm_name"]}


@makes("aws_cloudwatch_event_rule")
def event_rule(aws: Calls, value: Value) -> Value:
    made = aws("events").put_rule(
        Name=value["name"], Description=value["description"], EventPattern=value["event_pattern"]
    )
    return {"arn": made["RuleArn"], "id": value["name"]}


@makes("aws_cloudwatch_event_target")
def event_target(aws: Calls, value: Value) -> Value:
    target = {"Id": "topic", "Arn": value["arn"]}
    aws("events").put_targets(Rule=value["rule"], Targets=[target])
    return {"target_id": "topic"}
