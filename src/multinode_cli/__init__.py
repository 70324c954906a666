"""The ``multinode`` command. Its layers: ``commands > release | console > environments | checks >
tasks_folder > settings > errors``; each module imports only to its right."""
