//! Families that no training set contains: scored separately, to see what carries over.

use super::{big, digits_in, extend, gcd, is_prime, iterate, select, sums};
use crate::problems::family::Family;
use num_integer::Integer;

pub(crate) fn families() -> Vec<Family> {
    let families = vec![
        Family::new("frog_in_well", 0)
            .number("climb", 5..=40)
            .number("slip", 2..=30)
            .keep(|p| p.a > p.b)
            .story("A frog starts at height 0. In odd hours it climbs {a}, in even hours it slips down {b}. How high is it after n hours?")
            .story("{name} starts with 0 points. Rounds 1, 3, 5 and so on win {a}, rounds 2, 4, 6 lose {b}. What is the score after n rounds?")
            .story("By turns {a} is added and {b} taken away, adding first, from 0. What is there after n turns?")
            .code("print({a} * ((n + 1) // 2) - {b} * (n // 2))")
            .explain("{n} turns of plus {a} and minus {b} give {v}.")
            .slip("((n + 1) // 2)", "(n // 2)", "The climb comes first.")
            .slip(" - {b} * (n // 2)", "", "The slips of {b} were left out.")
            .slip("((n + 1) // 2)", "n", "Only every second turn climbs.")
            .at(|p, n| big(p.a * ((n + 1) / 2) - p.b * (n / 2))),
        Family::new("price_cycle", 0)
            .number("first price", 2..=60)
            .number("second price", 2..=60)
            .number("third price", 2..=60)
            .story("Prices repeat: {a}, {b}, {c}, then {a}, {b}, {c} again, and so on, from place 0. What is the price at place n?")
            .story("{name} takes {a}, {b} and {c} {things} on the first three days, numbered from 0, and repeats this. How many on day n?")
            .story("Lamps of {a}, {b} and {c} watts hang in this order again and again. What has the lamp at place n, counted from 0?")
            .code("print([{a}, {b}, {c}][n % 3])")
            .explain("Place {n} holds {v}.")
            .slip("n % 3", "(n + 1) % 3", "The cycle starts with {a} at 0.")
            .slip("[{a}, {b}, {c}]", "[{c}, {b}, {a}]", "The order is {a}, {b}, {c}.")
            .slip("n % 3", "n % 2", "The cycle has three prices.")
            .at(|p, n| big([p.a, p.b, p.c][(n % 3) as usize])),
        Family::new("largest_factor", 1)
            .number("factor", 3..=40)
            .number("addition", 2..=40)
            .keep(|p| gcd(p.a, p.b) == 1)
            .story("What is the largest prime that divides {a} * n + {b}?")
            .story("{name} breaks {a} * n + {b} into factors that only 1 and themselves divide. What is the largest one?")
            .story("Among the divisors of {a} * n + {b} that have no divisor but 1 and themselves, which above 1 is the largest?")
            .code("x = {a} * n + {b}\ni = 2\nwhile i < x:\n    if x % i == 0:\n        x //= i\n    else:\n        i += 1\nprint(x)")
            .slip("print(x)", "print(x + 1)", "The factor itself is asked.")
            .slip("x = {a} * n + {b}", "x = {a} * n", "The {b} more were left out.")
            .slip("x = {a} * n + {b}", "x = n + {b}", "The factor {a} was left out.")
            .at(|p, n| {
                let x = p.a * n + p.b;
                big((2..=x).rev().find(|&d| x % d == 0 && is_prime(d)).expect("x is above 1"))
            }),
        Family::new("divide_or_add", 0)
            .number("start", 10..=99)
            .number("divisor", 3..=6)
            .number("addition", 4..=40)
            .keep(|p| gcd(p.b, p.c) == 1)
            .story("A number starts at {a}. If {b} divides it, it is divided by {b}, else {c} is added. What is it after n steps?")
            .story("{name} has {a} {things}. Every {unit} a count divisible by {b} is divided by {b}; any other grows by {c}. How many after n {unit}s?")
            .story("Start with {a}. One step: divide by {b} if no rest is left, else add {c}. What is the number after n steps?")
            .code("x = {a}\nfor i in range(n):\n    x = x + {c} if x % {b} else x // {b}\nprint(x)")
            .slip("x // {b}", "x", "Multiples of {b} are divided.")
            .slip("x + {c}", "x", "Other numbers grow by {c}.")
            .slip("x + {c} if x % {b} else x // {b}", "x // {b} if x % {b} else x + {c}", "Multiples are divided, others grow.")
            .list(|p, count| {
                iterate(count, p.a, |x, _| {
                    if (x % p.b) == big(0) { x / p.b } else { x + p.c }
                })
            }),
        Family::new("zeros_in_binary", 1)
            .number("factor", 5..=99)
            .number("price", 2..=9)
            .keep(|p| p.a % 2 == 1)
            .story("{name} writes {a} * n in binary. Each 0 in it pays {b} coins. How many coins?")
            .story("A panel shows {a} * n in binary; each dark lamp stands for 0 and saves {b} watts. How many watts are saved?")
            .story("Count the zeros in the binary form of {a} * n. What is {b} times the count?")
            .code("print(bin({a} * n)[2:].count(\"0\") * {b})")
            .slip("[2:]", "", "The 0 of the prefix does not count.")
            .slip("count(\"0\")", "count(\"1\")", "Zeros are counted, not ones.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .at(|p, n| {
                let zeros = digits_in(big(p.a * n), 2).iter().filter(|&&d| d == 0).count();
                big(zeros as i64 * p.b)
            }),
        Family::new("pair_difference", 1)
            .number("first value", 1..=9)
            .number("second value", 1..=9)
            .number("bonus", 2..=20)
            .story("{name} writes {a}, {b}. Each next number is the difference of the last two, the last minus the one before, plus {c}. What is the n-th number?")
            .story("A list starts {a}, {b}. To go on, subtract the second to last entry from the last and add {c}. What is entry n?")
            .story("Marks are at {a} and {b}. Each next mark is the last mark minus the one before it plus {c}. Where is mark n?")
            .code("x, y = {a}, {b}\nfor i in range(n - 1):\n    x, y = y, y - x + {c}\nprint(x)")
            .slip("y - x + {c}", "y + x + {c}", "The older value is subtracted.")
            .slip("y - x + {c}", "y - x", "The {c} were never added.")
            .slip("print(x)", "print(y)", "The n-th value is x, not y.")
            .list(|p, count| {
                extend(count, &[p.a, p.b], |t| &t[t.len() - 1] - &t[t.len() - 2] + p.c)
            }),
        Family::new("odd_multiples_total", 1)
            .number("factor", 3..=60)
            .number("addition", 2..=40)
            .story("For each odd k from 1 to n, {name} gets {a} * k coins, and once {b} coins. How many coins?")
            .story("Houses 1 to n stand in a row. An odd house k has {a} * k windows, an even one none; the hall has {b}. How many windows?")
            .story("Sum {a} * k over the odd numbers k from 1 to n and add {b}. What is the result?")
            .code("print(sum({a} * i for i in range(1, n + 1, 2)) + {b})")
            .slip("n + 1, 2", "n + 1", "Only odd numbers count.")
            .slip("range(1, n + 1, 2)", "range(2, n + 1, 2)", "Odd numbers count, not even ones.")
            .slip(" + {b}", "", "The {b} extra were left out.")
            .list(|p, count| {
                let part = |i: i64| big(if i.is_odd() { p.a * i } else { 0 });
                sums((1..=count as i64).map(part).collect()).into_iter().map(|s| s + p.b).collect()
            }),
        Family::new("fourth_power_shell", 1)
            .number("shift", 2..=12)
            .number("loss", 2..=60)
            .story("{name} raises n + {a} to the fourth power and takes away {b} * n. What is left?")
            .story("A town has n + {a} streets of n + {a} houses of n + {a} floors of n + {a} rooms; {b} * n rooms are empty. How many are used?")
            .story("Multiply n + {a} by itself so that four such factors stand there, then subtract {b} * n. What is the result?")
            .code("print((n + {a}) ** 4 - {b} * n)")
            .explain("({n} + {a}) ** 4 - {b} * {n} = {v}.")
            .slip("** 4", "** 3", "There are four factors, not three.")
            .slip(" - {b} * n", "", "The {b} * n were not taken away.")
            .slip("(n + {a}) ** 4", "n ** 4 + {a}", "All of n + {a} is the base.")
            .at(|p, n| big(n + p.a).pow(4) - p.b * n),
        Family::new("both_multiples", 1)
            .number("divisor", 3..=12)
            .number("other divisor", 2..=9)
            .number("start", 5..=60)
            .keep(|p| p.a % p.b != 0 && p.b % p.a != 0)
            .story("List the numbers above {c} that {a} divides but {b} does not. What is the n-th one?")
            .story("{name} counts up from {c} + 1 and keeps numbers divisible by {a} and not by {b}. What is the n-th kept number?")
            .story("Seats above number {c} are sold if {a} divides the number and {b} does not. Which is the n-th sold seat?")
            .code("x = {c}\nwhile n > 0:\n    x += 1\n    if x % {a} == 0 and x % {b}:\n        n -= 1\nprint(x)")
            .slip(" and x % {b}", "", "Multiples of {b} are left out.")
            .slip("x % {a} == 0 and ", "", "Only multiples of {a} count.")
            .slip("x = {c}", "x = 0", "The search starts above {c}.")
            .list(|p, count| select(count, p.c, |x| x % p.a == 0 && x % p.b != 0)),
        Family::new("last_digit_climb", 0)
            .number("start", 1..=60)
            .number("factor", 2..=9)
            .number("addition", 1..=20)
            .story("A number starts at {a}. Each step adds {b} times its last digit and then {c}. What is it after n steps?")
            .story("{name} has {a} points. Every {unit} {b} times the last digit of the score is added, and {c} more. What is the score after n {unit}s?")
            .story("Start with {a}. One step: add the last digit {b} times, plus {c}. What is the number after n steps?")
            .code("x = {a}\nfor i in range(n):\n    x += {b} * (x % 10) + {c}\nprint(x)")
            .slip(" + {c}", "", "The {c} were never added.")
            .slip("x % 10", "x // 10", "The last digit is the remainder by 10.")
            .slip("x += ", "x = ", "The old number must be kept.")
            .list(|p, count| iterate(count, p.a, |x, _| x + p.b * (x % 10) + p.c)),
    ];
    families.into_iter().map(Family::unseen).collect()
}
