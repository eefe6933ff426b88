"""The byte path. Read `engine` first, then `pump`, which stands on `pieces`, `supply` and `inorder`; over HTTP `http`, which
stands on `wire` (the protocol, blocking), `answers` (what answers mean, pure), `target` and `connections`. `fairness`,
`buffers` and `threads` are what transfers share."""
