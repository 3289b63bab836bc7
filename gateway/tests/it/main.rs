//! The REST contract as a client sees it: the gateway, the three services and the stand-in Stripe run for
//! real on free ports, over a database of each test's own.

mod access;
mod admin;
mod answer;
mod browser;
mod cron;
mod keys;
mod oidc;
mod outage;
mod pages;
mod problem;
mod requests;
mod secure;
mod shares;
mod spend_cap;
mod subscriptions;
mod suite;
mod usage;
mod visitor;
mod webhooks;
