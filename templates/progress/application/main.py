"""Shows the progress of a function that runs elsewhere. Run it after `multinode deploy`."""

from multinode import get_deployed_function

import_rows = get_deployed_function(project_name="{{project}}", function_name="import_rows")

invocation_id = import_rows.start(num_rows=10)
for progress in import_rows.progress(invocation_id):
    print(f"{progress['done']} of {progress['of']}")
print("checksum:", import_rows.await_result(invocation_id)["checksum"])
