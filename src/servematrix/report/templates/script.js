const form = document.querySelector('form');
const rows = [...document.querySelectorAll('[data-cell]')];
function filter() {
  const verdict = form.verdict.value, name = form.cell.value.trim().toLowerCase();
  for (const one of rows)
    one.hidden = !one.dataset.cell.toLowerCase().includes(name)
      || verdict !== '' && !one.dataset.verdicts.split(' ').includes(verdict);
  const cells = rows.filter(one => one.localName === 'details' && !one.classList.contains('trend'));
  form.querySelector('output').value =
    `${cells.filter(one => !one.hidden).length} of ${cells.length} cells shown`;
}
function follow() {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let one = target; one; one = one.parentElement)
    if (one.localName === 'details') one.open = true;
  target.scrollIntoView();
  target.querySelector('summary')?.focus({preventScroll: true});
}
form.hidden = false;
form.addEventListener('input', filter);
form.addEventListener('submit', event => event.preventDefault());
for (const button of form.querySelectorAll('button'))
  button.addEventListener('click', () => {
    for (const one of rows)
      if (one.localName === 'details' && !one.hidden) one.open = button.value === 'open';
  });
addEventListener('hashchange', follow);
filter();
follow();
