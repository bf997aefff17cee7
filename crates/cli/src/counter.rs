//! A line on the terminal that counts what is done, says how fast it goes and when it ends, and is gone at the end.

use indicatif::{ProgressBar, ProgressStyle};

/// Counts images; to be told how many are done. Without a terminal nothing is shown.
pub fn counter(what: &str, total: usize) -> impl Fn(usize) + Sync + use<> {
    count(what, "images", total as u64)
}

/// Counts anything.
pub(crate) fn count(what: &str, unit: &str, total: u64) -> impl Fn(usize) + Sync + use<> {
    let bar = if crate::output::is_quiet() { ProgressBar::hidden() } else { ProgressBar::new(total) };
    let template = format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is fixed and valid");
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what.to_owned());
    move |done| {
        bar.set_position(done as u64);
        if done as u64 >= total {
            bar.finish_and_clear();
        }
    }
}
