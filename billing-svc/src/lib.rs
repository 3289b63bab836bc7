//! billing-svc: accounts, plans, overage ledger, Stripe
