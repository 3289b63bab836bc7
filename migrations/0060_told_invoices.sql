-- What Stripe has told of a customer's invoices: an account's page shows each as the last event about it said.
create index eco_stripe_events_invoices on eco_stripe_events ((payload #>> '{data,object,customer}'))
    where type like 'invoice.%' and object_id is not null;
