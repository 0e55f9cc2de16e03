"""Runs in a machine: makes its hosts, links and RDMA links, and runs commands in them.

This package is packed into one file, copied into the machine and started as a program there; so it
imports nothing else of ours, and as little of Python's as it can: every machine waits for that, and
each millisecond of it is four in User Mode Linux, and more in an emulated machine. What only types
need is not imported, and of what is written in C and in Python, the former (``_queue``,
``_socket``). It answers requests on standard input and output, or on the serial port that its
argument names. Each is a Python literal, a dictionary in ASCII on one line: to read JSON, Python
imports regular expressions and enumerations, which take longer than all else that is needed here::

    {'id': 1, 'do': 'make_hosts', 'with': {'namespaces': [...], ...}}
    ->  {'id': 1, 'ok': {...}} or {'id': 1, 'error': '...'}

The first line says ``{'id': 0, 'ok': 'ready'}``. On a serial port the agent outlives its
clients, is saved with a template, and runs in every clone. A repeated request to make something
gets the first answer again.
"""
