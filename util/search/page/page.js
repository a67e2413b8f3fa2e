// The search page. Whatever comes from the index is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const STEP = 24;
const MOST = 240;
const DEBOUNCE = 120; // ms
let about = null;
let request = null; // the one whose answer is waited for
let shown = null; // {kind: 'text' | 'image', top, file}
let timer = 0;
let opener = null;

function make(tag, options = {}, ...children) {
  const element = Object.assign(document.createElement(tag), options);
  element.append(...children);
  return element;
}

function say(text, bad = false) {
  $('status').textContent = text;
  $('status').classList.toggle('bad', bad);
}

async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error || `the server answered ${answer.status}`);
  return body;
}

// Runs one request at a time: a newer one replaces an older one.
async function run(what, path, options, show) {
  request?.abort();
  const own = (request = new AbortController());
  const slow = setTimeout(() => say(what), 300);
  const start = performance.now();
  try {
    const answer = await ask(path, { ...options, signal: own.signal });
    if (own === request) show(answer, Math.round(performance.now() - start));
  } catch (error) {
    if (error.name !== 'AbortError') say(error.message, true);
  } finally {
    clearTimeout(slow);
  }
}

// ------------------------------------------------------------------------------ what is shown

function picture(item, size = '') {
  if (!item || item.number === null || !item.picture) {
    return make('span', { className: 'none', textContent: item?.id ?? '' });
  }
  const image = make('img', {
    src: `media/${item.number}${size}`,
    alt: '', // what it shows is told by the text beside it
    loading: 'lazy',
  });
  image.addEventListener('error', () => image.replaceWith(picture({ ...item, picture: false })));
  return image;
}

function caption([text, english], lang) {
  const element = make('span', { className: 'text' });
  element.append(make('span', { textContent: text, lang }));
  if (english) element.append(make('span', { className: 'english', textContent: english, lang: 'en' }));
  return element;
}

function card(item, lang) {
  const button = make('button', { type: 'button', className: 'card' }, picture(item));
  button.append(
    make('span', { className: 'line' },
      make('span', { textContent: `${item.rank}. ${item.id}` }),
      make('span', { className: 'score', textContent: item.score.toFixed(3) })),
  );
  if (item.captions.length) button.append(caption([item.captions[0][0]], lang));
  button.addEventListener('click', () => open(item.number, button));
  return make('li', {}, button);
}

function captionRow(found, lang) {
  const item = { number: found.item, id: found.id, picture: found.picture };
  const button = make('button', { type: 'button', className: 'row' },
    make('span', { className: 'score', textContent: found.score.toFixed(3) }),
    picture(item),
    caption([found.text, found.translation], lang));
  if (found.item === null) button.disabled = true;
  else button.addEventListener('click', () => open(found.item, button));
  return make('li', {}, button);
}

function fill(list, elements) {
  $(list).replaceChildren(...elements);
}

function results(answer, milliseconds, heading) {
  const captions = (answer.captions ?? []).slice(0, shown.top / 2);
  fill('items', answer.items.map((item) => card(item, answer.lang)));
  fill('captions', captions.map((found) => captionRow(found, answer.lang)));
  $('heading').textContent = heading;
  $('heading').hidden = false;
  $('similar').hidden = answer.captions === null || !answer.items.length;
  $('more').hidden = !answer.more || shown.top >= MOST;
  const count = answer.items.length;
  const found = shown.kind === 'text' ? `${count} results` : `${captions.length} captions, ${count} similar`;
  say(`${found} (${answer.scale}), ${milliseconds} ms`);
}

// ------------------------------------------------------------------------------------ queries

function search() {
  const text = $('text').value.trim();
  if (!text) {
    say('Type a query first.', true);
    $('text').focus();
    return;
  }
  const lang = $('lang').value;
  const translation = lang === 'en' ? '' : $('translation').value.trim();
  const query = { text, lang, translation, top: shown.top };
  if (translation) query.weight = Number($('weight').value);
  $('given').hidden = true;
  const { top, ...kept } = query;
  history.replaceState(null, '', `#${new URLSearchParams(kept)}`);
  run('Searching …', 'api/search', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(query),
  }, (answer, milliseconds) => results(answer, milliseconds, `Results for “${text}”`));
}

function find() {
  const { file, top } = shown;
  if (file.size > about.largest_upload) {
    say(`The file is larger than ${Math.floor(about.largest_upload / 2 ** 20)} MiB.`, true);
    return;
  }
  URL.revokeObjectURL($('given').src);
  $('given').src = URL.createObjectURL(file);
  $('given').hidden = false;
  const lang = about.caption_languages.includes($('lang').value) ? $('lang').value : '';
  run('Looking at the image …', `api/image?${new URLSearchParams({ top, lang })}`, {
    method: 'POST',
    headers: { 'Content-Type': file.type || 'application/octet-stream' },
    body: file,
  }, (answer, milliseconds) => {
    results(answer, milliseconds, answer.captions.length ? 'Captions' : 'No captions in this index');
    $('results').focus();
  });
}

function again() {
  if (shown.kind === 'image') find();
  else search();
}

async function open(number, from) {
  const lang = about.caption_languages.includes($('lang').value) ? $('lang').value : '';
  let answer;
  try {
    answer = await ask(`api/item/${number}?${new URLSearchParams({ top: 12, lang })}`);
  } catch (error) {
    say(error.message, true);
    return;
  }
  const { item } = answer;
  $('name').textContent = item.id;
  $('large').hidden = !item.picture;
  if (item.picture) {
    $('large').src = `media/${item.number}/large`;
    $('large').alt = item.captions[0]?.[0] ?? item.id;
  } else {
    $('large').removeAttribute('src');
  }
  fill('own', item.captions.map((pair) => make('p', {}, caption(pair, answer.lang))));
  fill('nearest', answer.captions.slice(0, 5).map((found) => captionRow(found, answer.lang)));
  $('nearest-title').hidden = !answer.captions.length;
  fill('near', answer.items.map((other) => card(other, answer.lang)));
  if (!$('detail').open) {
    opener = from;
    $('detail').showModal();
  }
  $('detail').scrollTop = 0;
  $('close').focus();
}

// ------------------------------------------------------------------------------------- events

function adapt() {
  const english = $('lang').value === 'en';
  $('translated').hidden = english;
  $('mix').hidden = english || !$('translation').value.trim();
  $('shown').textContent = Number($('weight').value).toFixed(2);
  $('text').lang = $('lang').value;
}

$('query').addEventListener('submit', (event) => {
  event.preventDefault();
  clearTimeout(timer);
  shown = { kind: 'text', top: STEP };
  search();
});
$('lang').addEventListener('change', adapt);
$('translation').addEventListener('input', adapt);
$('weight').addEventListener('input', () => {
  adapt();
  clearTimeout(timer);
  if (shown?.kind === 'text') timer = setTimeout(search, DEBOUNCE);
});
$('image').addEventListener('change', () => {
  const [file] = $('image').files;
  if (!file) return;
  shown = { kind: 'image', top: STEP, file };
  find();
});
$('upload').addEventListener('submit', (event) => event.preventDefault());
$('more').addEventListener('click', () => {
  shown.top = Math.min(shown.top + STEP, MOST);
  again();
});
$('close').addEventListener('click', () => $('detail').close());
$('detail').addEventListener('click', (event) => {
  if (event.target === $('detail')) $('detail').close(); // the backdrop
});
$('detail').addEventListener('close', () => opener?.focus());

async function start() {
  try {
    about = await ask('api/about');
  } catch (error) {
    say(error.message, true);
    return;
  }
  $('about').textContent = `${about.items.toLocaleString('en')} items · model ${about.model}`;
  fill('lang', about.languages.map((lang) => make('option', { value: lang, textContent: lang })));
  $('weight').value = about.weight;
  $('upload').hidden = !about.images;
  const linked = new URLSearchParams(location.hash.slice(1));
  for (const name of ['text', 'lang', 'translation', 'weight']) {
    if (linked.has(name)) $(name).value = linked.get(name);
  }
  if (!$('lang').value) $('lang').selectedIndex = 0;
  adapt();
  if ($('text').value) {
    shown = { kind: 'text', top: STEP };
    search();
  }
}

start();
