-- An account's last subscription, ended ones too: what recording and quota ask for first. Without it each question
-- costs a pass over all subscriptions.
create index eco_subscriptions_last on eco_subscriptions (eco_id, ended_time desc nulls first, subscription_id desc);
