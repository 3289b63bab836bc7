-- A correction of usage may be of a segment that a change of plan has closed, in any period: it alters the counts that the
-- segment was closed with, and what is beyond the included units in those after it. Who corrected what is in
-- eco_usage_adjustments, and in the audit log.
grant update (recorded_units, overage_units) on eco_usage_segments to nexus_billing;
