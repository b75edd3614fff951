"""The pages, one module per area. A view parses, calls one service and renders.

Start with `access`, which all share: who is signed in, and how posted JSON is read and answered.
`entry` is the front page, setup and sign-in; `lists` the inbox and the activity feed. What a human
decides: `claim`, `approval`, `confirmation`, `resume`, and for administrators `denial`. What
exists: `agents`, with `described` and `grant_usage` (grants and their use in words),
`event_sentences` (events in words) and `log` (the state of the log); `paging` cuts long lists. Acts
on oneself: `settings`, `presence`, `recovery`. `verification` asks for the signature of a sensitive
act, `ending` before anything irreversible. After a restore, administrators use `restore` and
`release`.
"""
