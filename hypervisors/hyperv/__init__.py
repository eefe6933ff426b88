"""Hyper-V: driven by PowerShell remoting from a gateway."""
