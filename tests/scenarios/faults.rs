//! Faults that were found once: what a peer, an operator or the machine did to a relay, and what must happen instead. A file for each.

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
