"""The pages, one module per area. A view parses, calls one service and renders.

Start with `request_helpers`, which all share: who is signed in, and how posted JSON is read and
answered. `setup_and_sign_in` is the front page, setup and sign-in; `inbox` what waits. What a human
decides: `claim`, `grant_decision` (with `narrowing_fields`), `transaction_confirmation`, `resume`,
and for administrators `admin_denial`. What exists: `agents`, with `grants_in_words` and
`usage_in_words` (grants and their use in words). What happened: `activity` (the list, one event),
`activity_search`, `activity_export`, `spending` (budgets, and a `day_chart`), with
`event_sentences` (any event in words; decisions and confirmations in `decision_event_sentences`)
and `log_status` (the state of the log); `paging` cuts long lists. Acts on oneself: `settings` (its
sections `notification_settings` and `language`), `renewal_request`, `presence_lease_signing`,
`recovery`. `reauthentication` asks for the signature of a sensitive act, `destructive_actions`
before anything irreversible. After a restore, administrators use `log_break` and
`grant_release_after_restore`. Administrators also set up `approvers` (in words:
`approvers_in_words`), `catalogues` and `logos`. `component_gallery` shows every component, in
development only.
"""
