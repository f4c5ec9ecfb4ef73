"""From a registered challenger to a proven champion, and back.

`document` is the one truth: which version is champion, which is on its way, and how far. `steps` are its changes, pure;
`reconciliation` makes model servers, gateway, MLflow and history follow it, from whatever a kill has left; `validation`
tries a version before any traffic; `analysis` judges it by what it does with some.
"""
