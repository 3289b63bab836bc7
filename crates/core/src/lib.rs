//! Pure rules: no async, no I/O, no protobuf. Time and randomness are arguments.
//!
//! | module | what it decides |
//! |---|---|
//! | [`id`] | account ids, API keys and their secrets |
//! | [`plan`] | plan families, the terms of a plan version, which terms a subscription status grants |
//! | [`period`] | monthly billing periods that follow an anchor |
//! | [`method`] | methods in rollups: what is made up is one |
//! | [`money`] | integer micros, currencies, overage, cents due and the difference to charge |
//! | [`quota`] | what is consumed, remaining, and the percentage shown |
//! | [`spend_cap`] | the units that an account admits whose overage may cost so much |
//! | [`route`] | route templates: ids in paths become `{id}` |
//! | [`sketch`] | mergeable latency histogram with relative error |
//! | [`text`] | numbers as people read them |

pub mod id;
pub mod method;
pub mod money;
pub mod period;
pub mod plan;
pub mod quota;
pub mod route;
pub mod sketch;
pub mod spend_cap;
pub mod text;
