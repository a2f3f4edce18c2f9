//! Regression tests: faults that a peer, an operator or the machine caused in a relay once. One file for each.

mod address_shares;
mod caller_shares;
mod changes_meanwhile;
mod device_list;
mod end_records;
mod expired_tokens;
mod last_seen;
mod logging;
mod operator_requests;
mod refused_negotiations;
mod repeated_offers;
mod replaced_keys;
mod state_folder;
mod unanswered_close;
mod unread_answers;
