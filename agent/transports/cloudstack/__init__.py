"""Commands from Apache CloudStack's management servers, in their own protocol.

From the bytes up: `wire` has frames and messages, `tls` puts them into TLS, `json_shape` and `json_codec` read and write the
text, `models*` are its commands and answers, `connection` moves them. `session` and `servers` decide what a link does and
where it goes, `requests` runs what is asked, `control` answers what concerns the link itself, `live` is one connection and
`link` all of them. `identity` and `state` are what is kept. `roles` are what the agent is to a server; `commands_*` turn wire
commands into the agent's own and back. `transport` is all of that for the daemon, `trace` shows it to people.
"""
