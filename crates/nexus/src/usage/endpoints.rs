//! `nexus usage endpoints`.

use anyhow::{Result, anyhow};
use clap::Args;
use nexus_proto::analytics::v1::{EndpointStats, ListEndpointStatsRequest};
use serde_json::{Value, json};

use crate::{
    call::{Account, Analytics},
    listing::{Page, Paging, Row, list},
    table::Column,
    text::thousands,
};

pub(super) const HELP: &str = "\
Examples:
  nexus usage endpoints
  nexus usage endpoints --account eco_demo_pro --days 30 --limit 10
  nexus usage endpoints --all --json | jq '.endpoints[] | select(.success_rate < 0.99)'
Times are in milliseconds; percentiles are within 1.1 %. A user sees the own account; an admin any.
Exit code: 0 they were listed, 1 it failed.";

/// Endpoints a page at most.
const PAGE: u32 = 50;

#[derive(Args)]
pub(crate) struct EndpointsArgs {
    #[command(flatten)]
    account: Account,
    /// Days up to and including today (UTC)
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(i32).range(1..=365), value_name = "N")]
    days: i32,
    #[command(flatten)]
    paging: Paging,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Analytics,
}

pub(super) async fn run(args: &EndpointsArgs) -> Result<()> {
    let mut analytics = args.server.client()?;
    list(&args.paging, args.json, PAGE, async |page_size, page_token| {
        let eco_id = args.account.id();
        let request = ListEndpointStatsRequest { eco_id, days_count: args.days, page_size, page_token };
        let page = analytics.list_endpoint_stats(args.server.request(request)?).await;
        let refused = |status| {
            let failed = args.server.refused("ListEndpointStats", &status);
            anyhow!(args.account.if_missing(failed, &args.server.credentials, &status))
        };
        let page = page.map_err(refused)?.into_inner();
        Ok(Page { rows: page.endpoints, next: page.next_page_token, total: None })
    })
    .await
}

impl Row for EndpointStats {
    const NAME: &'static str = "endpoints";
    const COLUMNS: &'static [Column] = &[
        Column::text("method"),
        Column::text("endpoint"),
        Column::number("calls"),
        Column::number("success"),
        Column::number("mean ms").spare(3),
        Column::number("p50 ms").spare(2),
        Column::number("p95 ms"),
        Column::number("p99 ms").spare(1),
    ];

    fn cells(&self) -> Vec<String> {
        let ms = |ms: f64| format!("{ms:.1}");
        vec![
            self.method.clone(),
            self.endpoint.clone(),
            thousands(self.total_count),
            format!("{:.2} %", 100.0 * self.success_rate),
            ms(self.avg_response_time_ms),
            ms(self.p50_response_time_ms),
            ms(self.p95_response_time_ms),
            ms(self.p99_response_time_ms),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "method": self.method,
            "endpoint": self.endpoint,
            "calls": self.total_count,
            "success_rate": self.success_rate,
            "avg_response_time_ms": self.avg_response_time_ms,
            "p50_response_time_ms": self.p50_response_time_ms,
            "p95_response_time_ms": self.p95_response_time_ms,
            "p99_response_time_ms": self.p99_response_time_ms,
        })
    }
}
