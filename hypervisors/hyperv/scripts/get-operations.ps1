# The operations that this host has records of. { }
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    $root = Join-Path -Path $env:ProgramData -ChildPath 'storage-agent'
    $names = @()
    if (Test-Path -LiteralPath $root) { $names = @(Get-ChildItem -LiteralPath $root -Directory | ForEach-Object { $_.Name }) }
    $result = @{ operations = $names }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
