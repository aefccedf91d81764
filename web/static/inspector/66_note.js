// The user's note on the view, in the link and in the saved page: text of limited length.
const NOTE_MOST = 500;
// Without control characters, and without characters that change the text direction.
const plainNote = (text) => `${text}`.slice(0, NOTE_MOST).replace(/[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, " ").replace(/\s+/g, " ").trim();

function showNote() {
  const line = $(".note-line"), box = $("[data-note]");
  line.hidden = !view.note;
  line.textContent = view.note ? `Note: ${view.note}` : "";
  if (document.activeElement !== box) box.value = view.note;
}

function wireNote() {
  $("[data-note]").addEventListener("input", (event) => {
    view.note = plainNote(event.target.value);
    showNote();
    writeAddress();
  });
}
