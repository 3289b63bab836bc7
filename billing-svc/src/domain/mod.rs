//! Types and rules of accounts, plans and money; pure.
//!
//! | module | what it decides |
//! |---|---|
//! | [`account`] | an account with its subscription; what a new one must be |
//! | [`plan`] | a plan's newest version and its prices |
//! | [`plan_change`] | a change of an account's plan: now, at the period's end, or none |
//! | [`overage`] | what an account owes for a period, and the difference to charge |
//! | [`period`] | an account's period: its key, why it is parked, whether a run has to look at it |
//! | [`spend_cap`] | what an account's overage may cost, what is left of it, and the units it allows |
//! | [`charge`] | an entry of the ledger: its key, its exact payload, the text on the invoice |
//! | [`reconciliation`] | what a reconciliation looks at, and what it finds |
//! | [`books`] | a charge in the ledger beside the same charge in Stripe's books |
//! | [`adjustment`] | a correction of usage |
//! | [`basis`] | what a charge follows from, kept with it |
//! | [`settlement`] | an invoice after the end of a subscription, step by step |
//! | [`invoice`] | an invoice made for charges |
//! | [`run`] | the figures of a run over many accounts |
//! | [`stripe_signature`], [`stripe_event`] | whether a webhook is Stripe's; what is kept of it, and when it is tried again |
//! | [`of_a_day`] | how much an account may do within a day |
//! | [`sale`] | a request about a subscription at Stripe, and what is answered |
//! | [`stripe_change`] | what is asked of Stripe about a subscription or a checkout |
//! | [`stripe_customer`] | a customer that is made at Stripe |
//! | [`stripe_objects`], [`stripe_subscription`] | what is read at Stripe; what a subscription there means for ours |
//! | [`subscription_drift`] | a subscription at Stripe beside ours, where no event has told of it |
//! | [`threshold`] | which percentages of its limit an account's usage has reached |
//! | [`webhook`] | customers' webhooks: what is sent, where to, when, and how it is signed |
//! | [`told_invoice`] | an invoice as an event of Stripe's told of it |
//! | [`notice`] | what operators are told |

pub mod account;
pub mod adjustment;
pub mod basis;
pub mod books;
pub mod charge;
pub mod invoice;
pub mod notice;
pub mod of_a_day;
pub mod overage;
pub mod period;
pub mod plan;
pub mod plan_change;
pub mod reconciliation;
pub mod run;
pub mod sale;
pub mod settlement;
pub mod spend_cap;
pub mod stripe_change;
pub mod stripe_customer;
pub mod stripe_event;
pub mod stripe_objects;
pub mod stripe_signature;
pub mod stripe_subscription;
pub mod subscription_drift;
pub mod threshold;
pub mod told_invoice;
pub mod webhook;
