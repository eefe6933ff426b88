"""Commands over HTTP: plain JSON on a unix socket, and on TCP with mutual TLS.

`routes` says what there is and who may use it, in the terms of `route`; `server` listens, `edge` is what every request passes,
`events` streams progress, `openapi` describes all of it from the same table.
"""
