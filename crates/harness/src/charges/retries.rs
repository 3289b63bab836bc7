//! Customers whom Stripe refused become sound again, and what was refused is attempted once more.

use anyhow::Result;
use nexus_proto::billing::v1::RetryChargeRequest;
use uuid::Uuid;

use super::trial::Trial;
use crate::{billing::Client, report::Tally};

/// Of each period that is parked, the charge that was refused last.
const REFUSED: &str = "select distinct on (r.eco_id, r.period_start) h.charge_id
    from eco_usage_records r join eco_overage_charges h using (eco_id, period_start)
    where r.parked_reason is not null and r.eco_id = any ($1) and h.status = 'failed'
    order by r.eco_id, r.period_start, h.sequence desc";

impl Trial {
    /// Mends whom this round mends.
    pub(super) async fn mend(&mut self, round: u32, tally: &mut Tally) -> Result<()> {
        for account in &self.accounts {
            if let Some(trouble) = account.trouble
                && trouble.until == Some(round)
            {
                self.stripe.mend(&account.customer, trouble.poison).await?;
                tally.add("customers mended", 1);
            }
        }
        Ok(())
    }

    /// Has what is parked of those who are mended attempted again.
    pub(super) async fn retry(&mut self, round: u32, tally: &mut Tally) -> Result<()> {
        let mended = self.accounts.iter().filter(|account| account.is_mended(round));
        let mended: Vec<String> = mended.map(|account| account.eco_id.clone()).collect();
        let refused: Vec<Uuid> = sqlx::query_scalar(REFUSED).bind(mended).fetch_all(&mut self.db).await?;
        for charge_id in refused {
            let request =
                RetryChargeRequest { charge_id: charge_id.to_string(), request_id: self.request_id() };
            tally.add("refused charges retried", 1);
            let ask = async |mut client: Client, request| client.retry(request).await;
            self.insist(request, ask, tally).await?;
        }
        Ok(())
    }
}
