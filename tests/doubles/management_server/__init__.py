"""A management server as agents meet it on port 8250: what a real one enforces, and a script for the rest.

It shares no code with the agent: certificates, TLS, frames, headers and JSON are its own. `server` has the entry points.
"""
