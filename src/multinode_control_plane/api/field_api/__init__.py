"""The API of 2023, without a prefix, which programs in the field speak (`multinode` 1.0.1): it only translates.

Its clients compute an invocation's status by themselves, from times and outcomes. `answers` gives them values from which the status that
the invocation has comes out; `endpoints` are its paths; `refusals` its error texts. It decides nothing, and stores nothing.
"""
