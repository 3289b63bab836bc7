//! The REST contract as a client sees it: the gateway, the three services and the stand-in Stripe run for
//! real on free ports, over a database of each test's own.

mod access;
mod accounts;
mod admin;
mod answer;
mod browser;
mod charges;
mod cron;
mod currencies;
mod document;
mod edge;
mod figures;
mod grpc_web;
mod keys;
mod oidc;
mod outage;
mod page_states;
mod pages;
mod problem;
mod rate;
mod requests;
mod secure;
mod shares;
mod spend_cap;
mod strangers;
mod subscriptions;
mod suite;
mod sweep;
mod sweep_rpc;
mod untaken;
mod usage;
mod visitor;
mod webhooks;
