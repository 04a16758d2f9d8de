//! Percentile files: one value a line, as HdrHistogram's own tools print them and the usual plotters read them.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::error::BenchError;

/// Lines for each halving of what is left above.
const TICKS: u32 = 5;
/// The values are microseconds in the file, nanoseconds in the histogram.
const SCALE: f64 = 1000.0;

/// All rounds as one.
pub(crate) fn merged(rounds: &[Histogram<u64>]) -> Result<Histogram<u64>, BenchError> {
    let mut all = crate::figures::histogram()?;
    for round in rounds {
        all.add(round).map_err(|error| BenchError::Histogram(error.to_string()))?;
    }
    Ok(all)
}

/// The distribution in microseconds (the format of HdrHistogram's `outputPercentileDistribution`).
pub(crate) fn text(histogram: &Histogram<u64>) -> String {
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut seen = 0;
    for at in histogram.iter_quantiles(TICKS) {
        seen += at.count_since_last_iteration();
        let (value, quantile) = (at.value_iterated_to() as f64 / SCALE, at.quantile_iterated_to());
        // The last line has no last column: it would be infinite.
        let rest = if quantile < 1.0 { format!(" {:>14.2}", 1.0 / (1.0 - quantile)) } else { String::new() };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{value:>12.3} {quantile:>14.12} {seen:>10}{rest}");
    }
    let (mean, deviation) = (histogram.mean() / SCALE, histogram.stdev() / SCALE);
    let _ = writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
    let (max, count) = (histogram.max() as f64 / SCALE, histogram.len());
    let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {count:>12}]");
    let (buckets, sub_buckets) = (histogram.buckets(), histogram.distinct_values());
    let _ = writeln!(text, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]");
    text
}

/// Quantiles and microseconds, as far as there are values to tell them.
pub(crate) fn points(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let all = histogram.iter_quantiles(TICKS).filter(|at| at.quantile_iterated_to() < 1.0);
    all.map(|at| (at.quantile_iterated_to(), at.value_iterated_to() as f64 / SCALE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_the_histogram_holds() {
        let mut one = crate::figures::histogram().expect("one");
        (1..=1000).for_each(|value| one.saturating_record(value * 1000));
        let all = merged(&[one.clone(), one]).expect("both");
        let text = text(&all);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        let half = lines.iter().find(|line| line.get(1) == Some(&"0.500000000000")).expect("the median");
        assert_eq!((half[2], half[3]), ("1000", "2.00"), "{text}");
        assert!((half[0].parse::<f64>().expect("a number") - 500.0).abs() < 1.0, "{text}");
        assert!(text.contains("Total count    =         2000]"), "{text}");
        let points = points(&all);
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1), "{points:?}");
    }
}
