//! Scores as tables for people.

use crate::base::table::Table;
use crate::eval::cases::CaseAnalysis;
use crate::eval::score::Score;
use crate::eval::stats::Estimate;
use crate::tasks::Task;

/// More families than this would fill a terminal.
const MOST_FAMILIES: usize = 24;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn with_interval(share: f64, interval: Option<[f64; 2]>) -> String {
    let interval =
        interval.map(|[low, high]| format!("  [{:.1}, {:.1}]", 100.0 * low, 100.0 * high));
    percent(share) + &interval.unwrap_or_default()
}

/// pass@1 of all and of each family, pass@k for some k, why responses failed, and what was left out.
pub(crate) fn score_text(task: &dyn Task, score: &Score) -> String {
    let mut table = Table::new([task.name(), "pass@1", "problems"]);
    table.row([
        "all".to_owned(),
        with_interval(score.pass_at_1, Some(score.ci95)),
        score.num_problems.to_string(),
    ]);
    if let Some(Estimate { mean, ci95 }) = score.mean_of_families {
        let count = score.families.len().to_string();
        table.row(["mean of families".to_owned(), with_interval(mean, Some(ci95)), count]);
    }
    let (shown, left_out) = match score.families.len() {
        n if n > MOST_FAMILIES => {
            (0, format!("{n} families, each of which is in the file of --out\n"))
        }
        n => (n, String::new()),
    };
    for (family, of_family) in score.families.iter().take(shown) {
        table.row([
            family.clone(),
            with_interval(of_family.pass_at_1, of_family.ci95),
            of_family.num_problems.to_string(),
        ]);
    }
    let mut by_k = Table::new(["pass@k", "share"]);
    for (k, estimate) in score.pass_at_k.iter().filter(|(k, _)| k.is_power_of_two()) {
        by_k.row([k.to_string(), with_interval(estimate.mean, Some(estimate.ci95))]);
    }
    let mut failures = Table::new(["did not pass", "responses"]);
    for (reason, count) in &score.failures {
        failures.row([reason.clone(), count.to_string()]);
    }
    let length = score.mean_response_tokens.map(|mean| format!("{mean:.0} tokens on average, "));
    format!(
        "{table}{left_out}\n{by_k}\n{failures}\n{} rollouts for each problem, {}{} cut by the limit of tokens, {} in the \
         wrong format, {} without a verdict, {} within a factor of two of a limit of the judge\n",
        score.num_rollouts,
        length.unwrap_or_default(),
        percent(score.cut),
        percent(score.format_errors),
        score.num_infra,
        score.num_near_limit
    )
}

/// The four quadrants, and how often was asked.
pub(crate) fn cases_text(analysis: &CaseAnalysis) -> String {
    let mut table = Table::new(["own cases", "program right", "program wrong"]);
    if let Some([c_c, c_f, no_c, no_f]) = analysis.shares {
        let cell = |name: &str, share: f64| format!("{name} {}", percent(share));
        table.row(["all right".to_owned(), cell("C-C", c_c), cell("C-F", c_f)]);
        table.row(["some wrong".to_owned(), cell("No-C", no_c), cell("No-F", no_f)]);
    }
    let asked: Vec<String> = analysis.num_asked.iter().map(usize::to_string).collect();
    format!(
        "{table}\n{} responses to {} problems; asked at each try: {}; {} without a case in the end, {} \
         without a verdict\n",
        analysis.num_problems * analysis.num_rollouts,
        analysis.num_problems,
        asked.join(", "),
        analysis.quadrants.without_cases,
        analysis.num_infra
    )
}
