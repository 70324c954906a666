"""Invokes the functions of tasks/ from another program. Run it after `multinode deploy`."""

from multinode import get_deployed_function

PROJECT = "{{project}}"

greet = get_deployed_function(project_name=PROJECT, function_name="greet")
print(greet.call_remote("application"))

count_up = get_deployed_function(project_name=PROJECT, function_name="count_up")
invocation_id = count_up.start(3)
for value in count_up.progress(invocation_id):
    print("so far:", value)
print("result:", count_up.await_result(invocation_id))
