// What gradio leaves open: pictures pasted anywhere, and names and keys for what only the mouse could reach.

document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  const field = document.querySelector("#photos input[type=file]");
  if (!files.length || !field) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  files.forEach((file) => transfer.items.add(file));
  field.files = transfer.files;
  field.dispatchEvent(new Event("change", { bubbles: true }));
});

// Sections that open at a press.
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.fold");
  if (!button) return;
  const open = document.getElementById(button.getAttribute("aria-controls")).classList.toggle("open");
  button.setAttribute("aria-expanded", String(open));
});

// The line between before and after becomes a slider that the arrow keys move.
const sharesOfWidth = { ArrowLeft: -0.05, ArrowRight: 0.05, PageDown: -0.25, PageUp: 0.25, Home: -1, End: 1 };
const lineOffset = (handle) => new DOMMatrix(handle.style.transform).m41;
const moveLine = (handle, share) => {
  const area = handle.parentElement.getBoundingClientRect();
  const from = { clientX: area.x + lineOffset(handle), clientY: area.y + area.height / 2, bubbles: true, view: window };
  const to = { ...from, clientX: from.clientX + share * area.width };
  handle.dispatchEvent(new MouseEvent("mousedown", from));
  window.dispatchEvent(new MouseEvent("mousemove", to));
  window.dispatchEvent(new MouseEvent("mouseup", to));
};
const sayWhereLineIs = (handle) => {
  const percent = Math.round((100 * lineOffset(handle)) / handle.parentElement.getBoundingClientRect().width);
  handle.setAttribute("aria-valuenow", String(percent));
};
// Before its pictures have come, Gradio's comparison has no width, and any move would throw the line to the edge.
const pictures = async () => {
  const images = [...document.querySelectorAll("#compare img")];
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  await new Promise(requestAnimationFrame);
};
const prepareLine = (handle) => {
  const names = { role: "slider", tabindex: "0", "aria-label": "Line between before and after" };
  const range = { "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": "50" };
  Object.entries({ ...names, ...range }).forEach((pair) => handle.setAttribute(...pair));
  new MutationObserver(() => sayWhereLineIs(handle)).observe(handle, { attributeFilter: ["style"] });
  handle.addEventListener("keydown", async (event) => {
    const share = sharesOfWidth[event.key];
    if (share === undefined) return;
    event.preventDefault();
    await pictures();
    moveLine(handle, share);
  });
};

// Gradio puts one button into another: the outer one takes over.
const joinButtons = (outer) => {
  outer.setAttribute("aria-label", "Add more");
  outer.setAttribute("title", "Add more");
  outer.querySelector("button").inert = true;
  outer.addEventListener("click", () => outer.querySelector("input[type=file]").click());
};

const nameThings = () => {
  document.querySelectorAll("#compare [data-testid=slider]:not([role=slider])").forEach(prepareLine);
  document.querySelectorAll("#compare [data-testid=imageslider-image][alt='']").forEach((image) => {
    image.alt = image.classList.contains("fixed") ? "After" : "Before";
  });
  document.querySelectorAll("button.thumbnail-item").forEach((button) => {
    const caption = button.querySelector(".caption-label")?.textContent;
    if (caption && button.getAttribute("aria-label") !== caption) button.setAttribute("aria-label", caption);
    button.querySelector("img").alt = ""; // the caption says it
  });
  document.querySelectorAll("button[aria-label='common.upload']").forEach(joinButtons);
  const spoken = ":is(#status, #generate-status, #compress-status, #compress-plan):not([role])";
  document.querySelectorAll(spoken).forEach((status) => status.setAttribute("role", "status"));
};
new MutationObserver(nameThings).observe(document, { childList: true, characterData: true, subtree: true });
