"""A small Grid'5000 for tests: REST API, ssh gateway, machines that are network namespaces or virtual machines.

It lives in network, mount and process namespaces of its own (`world.py`), so that nothing of it reaches the machine and
all of it ends with its first process. EnOSlib's own provider runs against it unchanged. The real Grid'5000 was never
reached from here: what the API answers was written from EnOSlib's source and from Grid'5000's public documents.
"""
